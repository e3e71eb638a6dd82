// The finished part of a conversation, and the empty page before it. Draws what the server sends, asks for retry, undo,
// edit, continuation and other versions; never changes the conversation by itself.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  // [[text, definition], ...] of a reply's figures, as one quiet line.
  P.footer = (items) => el("div", { class: "figures" }, ...(items || []).map(([text, tip]) => el("span", { text, "data-tip": tip })));

  P.userBubble = (text) => el("div", { class: "bubble", text });

  const STATUS = { stopped: "Stopped here", error: "Ended by an error", interrupted: "Interrupted" };

  P.mountTranscript = (element, props, watch, fire, config) => {
    const root = el("div", { class: "transcript", role: "log", "aria-label": "Messages", "aria-live": "off" });
    const announcer = el("div", { class: "offscreen", "aria-live": "polite" });
    element.append(root, announcer);
    let shown = -1;
    let chat;
    let nodes = new Map();
    let signatures = new Map();

    const action = (label, tip, onclick) => el("button", { class: "quiet", type: "button", text: label, "data-tip": tip, onclick });

    const edit = (message, node) => {
      const area = el("textarea", { class: "edit", "aria-label": "Edit your message", value: message.text, rows: "2" });
      const close = () => { node.replaceWith(nodes.get(message.id)); };
      const save = () => { if (area.value.trim()) { close(); fire("edit", { chat: P.state.chat, message: message.id, text: area.value, ...P.calls.settings() }); } };
      area.addEventListener("keydown", (event) => {
        if (event.isComposing) return;
        if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); save(); }
        if (event.key === "Escape") { event.preventDefault(); close(); }
      });
      const box = el("div", { class: "message user editing" }, area, el("div", { class: "actions" }, el("button", { class: "button", type: "button", text: "Cancel", onclick: close }), el("button", { class: "button strong", type: "button", text: "Send again", onclick: save })));
      node.replaceWith(box);
      node = box;
      area.focus();
      area.setSelectionRange(area.value.length, area.value.length);
    };

    const again = (name) => { P.setState({ running: true }); fire(name, { chat: P.state.chat, ...P.calls.settings() }); };
    const retry = () => action("Retry", "Write this reply again; this one stays as a version. Ctrl+Enter", () => again("retry"));
    P.calls.retry = () => { if (!P.state.running && P.state.head) again("retry"); };

    // The recording of the run that wrote a reply.
    const replay = (id) => {
      const button = action("Replay", "Play this reply again step by step, on the Requests page", async () => {
        const run = await fetch(new URL(`chats/run/${id}`, document.baseURI)).then((answer) => (answer.ok ? answer.json() : null), () => null);
        if (run !== null) { window.location.hash = `requests/${run}`; return; }
        button.textContent = "Not recorded";
        button.disabled = true;
      });
      return button;
    };

    // Where branches part: which version this is, and the ways to its neighbours.
    const versions = (message, idle) => {
      if (!message.versions) return null;
      const at = message.versions.indexOf(message.id);
      const way = (to, sign, label) => el("button", { type: "button", text: sign, "aria-label": label, disabled: !idle || to < 0 || to >= message.versions.length, onclick: () => fire("switch", { chat: P.state.chat, message: message.versions[to] }) });
      return el("span", { class: "versions", role: "group", "aria-label": `Version ${at + 1} of ${message.versions.length}`, "data-tip": "Versions of this message: edits and retries keep the ones before, with all that followed them." },
        way(at - 1, "‹", "Earlier version"), el("span", { text: `${at + 1} / ${message.versions.length}` }), way(at + 1, "›", "Later version"));
    };

    // `alone`: its reply was lost, as when the playground was killed in the middle of it.
    const userMessage = (message, idle, alone) => {
      const node = el("div", { class: `message user${alone ? " alone" : ""}` }, P.userBubble(message.text), versions(message, idle));
      if (idle) node.append(el("div", { class: "actions" }, alone ? retry() : null, action("Edit", "Ask this in other words; what is here stays as a version", () => edit(message, node))));
      return node;
    };

    const reply = (message, last, idle) => {
      const text = P.markdown(message.text, el("div", { class: "text" }));
      const view = new P.TokenView({ plain: message.speculation, missing: message.text ? "— The tokens of this reply were not recorded." : null });
      P.loadRows(view, message);
      const how = STATUS[message.status] || (message.cut ? "Cut off at the most tokens in a reply" : null);
      const state = how ? el("span", { class: "state", text: message.error ? `${how}: ${message.error}` : how }) : null;
      const copy = action("Copy", "Copy the reply as it was written", async () => { await P.copy(message.text); copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy"; }, 1500); });
      const actions = el("div", { class: "actions" }, message.text ? copy : null, message.status ? replay(message.id) : null);
      if (last) {
        if (message.continuable) actions.append(action("Continue", "Go on where this reply ended; this one stays as a version", () => again("extend")));
        actions.append(retry());
        actions.append(action("Undo", "Take back the last message and its reply", () => fire("undo", { chat: P.state.chat, head: P.state.head })));
      }
      const figures = P.footer(message.figures);
      if (state) figures.prepend(state);
      return el("div", { class: `message reply${last ? " last" : ""}` }, last ? P.segments() : null, text, view.node, el("div", { class: "foot" }, figures, versions(message, idle), actions));
    };

    const about = el("div", { class: "about-model" });
    P.host.onChange((host) => about.replaceChildren(...host.empty_text.map((text) => el("p", { text }))));
    const empty = () => el("div", { class: "empty" },
      el("h2", { text: config.empty_title }),
      about,
      el("div", { class: "examples", role: "group", "aria-label": "Example messages" }, ...config.examples.map((text) => el("button", { class: "example", type: "button", text, onclick: () => P.calls.send(text) }))));

    const draw = (value) => {
      const messages = value.messages || [];
      const wanted = [];
      const seen = new Map();
      const seenSignatures = new Map();
      const idle = !value.running;
      messages.forEach((message, index) => {
        const last = idle && index === messages.length - 1;
        const signature = JSON.stringify([message, last, idle]);
        const known = signatures.get(message.id) === signature && nodes.get(message.id);
        const node = known || (message.role === "user" ? userMessage(message, idle, last) : reply(message, last, idle));
        seen.set(message.id, node);
        seenSignatures.set(message.id, signature);
        wanted.push(node);
      });
      if (value.left_out) wanted.splice(0, 0, el("p", { class: "notice", text: value.left_out }));
      if (!messages.length && !value.running) wanted.push(empty());
      if (value.error) wanted.push(el("p", { class: "problem", role: "alert", text: value.error }));
      nodes = seen;
      signatures = seenSignatures;
      root.replaceChildren(...wanted);
    };

    P.bind(props, watch, (value) => {
      if (!value || value.rev <= shown) return;
      const opened = value.chat !== chat || shown < 0;
      const ended = P.state.running && !value.running && !opened;
      shown = value.rev;
      chat = value.chat;
      draw(value);
      P.setState({ chat: value.chat, head: value.messages.length ? value.messages.at(-1).id : 0, running: Boolean(value.running), tokens: value.tokens });
      if (value.restore && P.calls.restore) P.calls.restore(value.restore);
      if (opened && value.system !== undefined && P.calls.system) P.calls.system(value.system);
      P.pages.title("chat", value.title);
      const url = new URL(window.location);
      if (value.chat) url.searchParams.set("chat", value.chat); else url.searchParams.delete("chat");
      if (url.href !== window.location.href) window.history.replaceState(null, "", url);
      announcer.textContent = ended ? "The reply is complete." : "";
      P.scroller.follow(opened || value.running);
    });
  };
})();
