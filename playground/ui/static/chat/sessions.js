// The list of chats: by day, with search, open, rename, export and delete (which can be undone for some seconds). The list itself comes
// from the server; on a narrow page it is a drawer.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  const dayOf = (ms) => { const day = new Date(ms); day.setHours(0, 0, 0, 0); return day.getTime(); };
  const dayName = (ms) => {
    const days = Math.round((dayOf(Date.now()) - dayOf(ms)) / 86_400_000);
    if (days <= 0) return "Today";
    if (days === 1) return "Yesterday";
    const date = new Date(ms);
    const year = date.getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" };
    return date.toLocaleDateString(undefined, { day: "numeric", month: "long", ...year });
  };
  const clock = (ms) => new Date(ms).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });

  P.mountSessions = (element, props, watch, fire, config) => {
    const search = el("input", { type: "search", placeholder: "Search chats", "aria-label": "Search chats (Ctrl+K)", autocomplete: "off", spellcheck: "false" });
    const fresh = el("button", { class: "button new", type: "button", onclick: () => { toggle(false); fire("new", {}); P.calls.focus(); } }, P.icon("plus"), "New chat");
    const rows = el("div", { class: "rows", role: "list", "aria-label": "Chats" });
    element.append(el("nav", { class: "sessions", "aria-label": "Chats" }, fresh, el("div", { class: "search" }, search, el("kbd", { text: "Ctrl K" })), rows));
    let value = null;
    let timer = 0;
    let asking = null; // {id, what: "rename" | "export"}

    const ask = (id, what) => { asking = { id, what }; draw(); const field = rows.querySelector(".asking input, .asking .button"); if (field) { field.focus(); if (field.select) field.select(); } };
    const done = () => { asking = null; draw(); };

    const renaming = (session) => {
      const input = el("input", { value: session.title, "aria-label": "New name of the chat", maxlength: "200" });
      const keep = () => { const title = input.value.trim(); asking = null; if (title && title !== session.title) fire("rename", { id: session.id, title, query: search.value, chat: P.state.chat }); draw(); };
      input.addEventListener("keydown", (event) => {
        if (event.isComposing) return;
        if (event.key === "Enter") keep();
        if (event.key === "Escape") { event.preventDefault(); done(); }
      });
      input.addEventListener("blur", () => { if (asking && asking.id === session.id) keep(); });
      return el("div", { class: "session asking", role: "listitem" }, input);
    };
    // A chat as a file: the browser saves it, the page stays.
    const exporting = (session) => {
      const link = (label, suffix, tip) => el("a", { class: "button", href: new URL(`chats/${session.id}/export.${suffix}`, document.baseURI), download: "", text: label, "data-tip": tip, onclick: () => setTimeout(done, 0) });
      return el("div", { class: "session asking", role: "listitem" },
        el("span", { class: "question", text: "Save this chat as a file" }),
        el("div", { class: "choices", onkeydown: (event) => { if (event.key === "Escape") { event.preventDefault(); done(); } } },
          link("Markdown", "md", "What is shown, for reading"), link("JSON", "json", "All branches, with settings, figures and tokens"),
          el("button", { class: "quiet", type: "button", text: "Cancel", onclick: done })));
    };

    // A deleted chat can be brought back for some seconds.
    const said = el("span", { title: "" });
    const bar = el("div", { class: "undo-bar", role: "status", hidden: true }, said, el("button", { type: "button", text: "Undo", onclick: () => { bar.hidden = true; fire("restore", { id: deleted.id, open: deleted.open, query: search.value }); } }));
    rows.after(bar);
    let [deleted, away] = [null, 0];
    const remove = (session) => {
      deleted = { id: session.id, open: session.id === P.state.chat };
      said.textContent = "Chat deleted";
      said.title = session.title;
      bar.hidden = false;
      window.clearTimeout(away);
      away = window.setTimeout(() => { bar.hidden = true; }, config.undo_seconds * 1000);
      fire("delete", { id: session.id, query: search.value, chat: P.state.chat });
    };

    const row = (session) => {
      if (asking && asking.id === session.id) return asking.what === "rename" ? renaming(session) : exporting(session);
      const current = session.id === P.state.chat;
      const detail = el("small", { text: [clock(session.updated_ms), session.detail].filter(Boolean).join(" · ") });
      return el("div", { class: `session${current ? " current" : ""}`, role: "listitem" },
        el("button", { class: "open", type: "button", "aria-current": current ? "true" : null, title: session.title, onclick: () => { toggle(false); if (!current) fire("open", { id: session.id }); } }, el("span", { class: "title", text: session.title }), detail),
        el("span", { class: "tools" },
          el("button", { class: "tool", type: "button", "aria-label": `Rename ${session.title}`, "data-tip": "Rename", onclick: () => ask(session.id, "rename") }, P.icon("pencil")),
          el("button", { class: "tool", type: "button", "aria-label": `Export ${session.title}`, "data-tip": "Export", onclick: () => ask(session.id, "export") }, P.icon("download")),
          el("button", { class: "tool", type: "button", "aria-label": `Delete ${session.title}`, "data-tip": "Delete", onclick: () => remove(session) }, P.icon("trash"))));
    };

    const draw = () => {
      if (!value) return;
      const nodes = [];
      let day = null;
      for (const session of value.sessions) {
        const name = dayName(session.updated_ms);
        if (name !== day) { nodes.push(el("div", { class: "day", text: name })); day = name; }
        nodes.push(row(session));
      }
      if (!nodes.length) nodes.push(el("p", { class: "none", text: value.query ? `No chat contains “${value.query}”.` : "Your chats will be listed here, with every reply and its figures." }));
      if (value.error) nodes.unshift(el("p", { class: "problem", role: "alert", text: value.error }));
      rows.replaceChildren(...nodes);
    };

    search.addEventListener("input", () => { window.clearTimeout(timer); timer = window.setTimeout(() => fire("search", { query: search.value }), 180); });
    search.addEventListener("keydown", (event) => { if (event.key === "Escape" && search.value) { event.preventDefault(); search.value = ""; fire("search", { query: "" }); } });

    const toggle = (open) => { document.body.classList.toggle("drawer", open); if (P.calls.drawerChanged) P.calls.drawerChanged(open); };
    P.calls.drawer = () => toggle(!document.body.classList.contains("drawer"));
    const STORED = "inference-playground.sessions";
    const hide = (hidden) => { document.body.classList.toggle("no-sessions", hidden); try { window.localStorage.setItem(STORED, hidden ? "hidden" : "shown"); } catch { /* private mode: forgotten on reload */ } };
    try { hide(window.localStorage.getItem(STORED) === "hidden"); } catch { /* as above */ }
    P.calls.sidebar = () => { if (window.innerWidth < 900) P.calls.drawer(); else hide(!document.body.classList.contains("no-sessions")); };
    P.calls.search = () => { hide(false); if (window.innerWidth < 900) toggle(true); search.focus(); search.select(); };
    document.addEventListener("keydown", (event) => { if (event.key === "Escape" && document.body.classList.contains("drawer")) { event.preventDefault(); toggle(false); } }, true);
    document.addEventListener("pointerdown", (event) => { if (document.body.classList.contains("drawer") && !event.target.closest("#sessions, .menu")) toggle(false); });
    P.onState((_, changed) => { if (changed.includes("chat")) draw(); });

    P.bind(props, watch, (next) => {
      if (!next || (value && next.rev <= value.rev) || (next.query || "") !== search.value) return;
      value = next;
      draw();
    });
  };
})();
