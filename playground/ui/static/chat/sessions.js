// The list of chats: by day, with search, open, rename and delete (asked once more before it happens). The list itself comes
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

  P.mountSessions = (element, props, watch, fire) => {
    const search = el("input", { type: "search", placeholder: "Search chats", "aria-label": "Search chats (Ctrl+K)", autocomplete: "off", spellcheck: "false" });
    const fresh = el("button", { class: "button new", type: "button", onclick: () => { toggle(false); fire("new", {}); P.calls.focus(); } }, P.icon("plus"), "New chat");
    const rows = el("div", { class: "rows", role: "list", "aria-label": "Chats" });
    element.append(el("nav", { class: "sessions", "aria-label": "Chats" }, fresh, el("div", { class: "search" }, search, el("kbd", { text: "Ctrl K" })), rows));
    let value = null;
    let timer = 0;
    let asking = null; // {id, what: "rename" | "delete"}

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
    const deleting = (session) => el("div", { class: "session asking", role: "listitem" },
      el("span", { class: "question", text: "Delete this chat for good?" }),
      el("div", { class: "choices", onkeydown: (event) => { if (event.key === "Escape") { event.preventDefault(); done(); } } },
        el("button", { class: "button", type: "button", text: "Keep", onclick: done }),
        el("button", { class: "button strong", type: "button", text: "Delete", onclick: () => { asking = null; fire("delete", { id: session.id, query: search.value, chat: P.state.chat }); draw(); } })));

    const row = (session) => {
      if (asking && asking.id === session.id) return asking.what === "rename" ? renaming(session) : deleting(session);
      const current = session.id === P.state.chat;
      const detail = session.found ? [el("small", { class: "found", text: session.found })] : [el("small", { text: [clock(session.updated_ms), session.detail].filter(Boolean).join(" · ") })];
      return el("div", { class: `session${current ? " current" : ""}`, role: "listitem" },
        el("button", { class: "open", type: "button", "aria-current": current ? "true" : null, title: session.title, onclick: () => { toggle(false); if (!current) fire("open", { id: session.id }); } }, el("span", { class: "title", text: session.title }), ...detail),
        el("span", { class: "tools" },
          el("button", { class: "tool", type: "button", "aria-label": `Rename ${session.title}`, "data-tip": "Rename", onclick: () => ask(session.id, "rename") }, P.icon("pencil")),
          el("button", { class: "tool", type: "button", "aria-label": `Delete ${session.title}`, "data-tip": "Delete", onclick: () => ask(session.id, "delete") }, P.icon("trash"))));
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
    P.calls.search = () => { if (window.innerWidth < 900) toggle(true); search.focus(); search.select(); };
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
