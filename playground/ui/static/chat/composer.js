// Where a message is written: the text, the sampling settings with their presets, the system prompt, Send and Stop. Keeps the
// settings of this browser in localStorage; what a value may be is the server's to judge.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const STORED = "inference-playground.settings";

  const load = () => { try { return JSON.parse(window.localStorage.getItem(STORED)) || {}; } catch { return {}; } };
  const save = (settings) => { try { window.localStorage.setItem(STORED, JSON.stringify(settings)); } catch { /* private mode: forgotten on reload */ } };

  P.mountComposer = (element, fire, config) => {
    const area = el("textarea", { rows: "1", placeholder: "Write a message", "aria-label": "Message", maxlength: "200000" });
    const used = el("span", { class: "used" });
    const send = el("button", { class: "button strong send", type: "button" });
    const words = el("span");
    const caption = el("p", { class: "caption" }, words, el("button", { class: "quiet keys", type: "button", "aria-label": "Keyboard shortcuts", onclick: () => P.calls.keys() }, "Keys ", el("kbd", { text: "?" })));
    let [loaded, context] = [true, 0];

    // ---- settings ----
    const fields = new Map();
    const preset = el("select", { "aria-label": "Sampling preset" }, ...[...Object.keys(config.presets), "Custom"].map((name) => el("option", { text: name, value: name })));
    preset.lastElementChild.hidden = true;
    const grid = el("div", { class: "fields" });
    for (const field of config.fields) {
      const input = el("input", { type: "text", inputmode: field.step === 1 ? "numeric" : "decimal", id: `setting-${field.name}`, autocomplete: "off", placeholder: field.placeholder || "", spellcheck: "false" });
      fields.set(field.name, input);
      input.addEventListener("input", () => { matchPreset(); save(values()); });
      grid.append(el("label", { class: "field", for: input.id, "data-tip": field.tip }, el("span", { text: field.label }), input));
    }
    const values = () => Object.fromEntries([...fields].map(([name, input]) => [name, input.value.trim()]));
    const apply = (settings) => { for (const [name, input] of fields) if (name in settings) input.value = settings[name]; };
    const matchPreset = () => {
      const now = values();
      const match = Object.entries(config.presets).find(([, wanted]) => Object.entries(wanted).every(([name, value]) => now[name] === value));
      preset.value = match ? match[0] : "Custom";
      preset.lastElementChild.hidden = Boolean(match);
    };
    preset.addEventListener("change", () => { apply(config.presets[preset.value] || {}); matchPreset(); save(values()); });
    apply(config.defaults);
    apply(load());
    matchPreset();

    const system = el("textarea", { rows: "3", id: "setting-system", placeholder: "None: the model answers as it was trained", maxlength: "20000" });
    const panels = {
      sampling: el("div", { class: "panel", id: "panel-sampling", role: "group", "aria-label": "Sampling settings", hidden: true }, grid),
      system: el("div", { class: "panel", id: "panel-system", role: "group", "aria-label": "System prompt", hidden: true }, el("label", { class: "field wide", for: "setting-system" }, el("span", { text: "System prompt of this chat, sent before every message" }), system)),
    };
    const toggles = {};
    const toggle = (name, label, short) => {
      const button = el("button", { class: "button", type: "button", "aria-expanded": "false", "aria-controls": `panel-${name}` }, P.long({ label, short }));
      toggles[name] = button;
      button.addEventListener("click", () => {
        for (const [other, panel] of Object.entries(panels)) {
          panel.hidden = other !== name || !panel.hidden;
          toggles[other].setAttribute("aria-expanded", String(!panel.hidden));
        }
        if (!panels[name].hidden) panels[name].querySelector("input, textarea").focus();
      });
      return button;
    };
    const mark = () => toggles.system.classList.toggle("set", Boolean(system.value.trim()));
    system.addEventListener("input", mark);

    const row = el("div", { class: "row" },
      el("label", { class: "button select" }, el("span", { class: "offscreen", text: "Preset" }), preset),
      toggle("sampling", "Sampling"), toggle("system", "System prompt", "System"), el("span", { class: "spacer" }), used, send);
    element.append(el("form", { class: "box", autocomplete: "off", onsubmit: (event) => event.preventDefault() }, area, panels.sampling, panels.system, row), caption);

    // ---- sending ----
    const fit = () => { area.style.height = "auto"; area.style.height = `${Math.min(area.scrollHeight, Math.round(window.innerHeight * 0.3))}px`; };
    // What every request for a reply says beside its own: how it is to be written, and what the tab shows.
    const settings = () => ({ settings: values(), system: system.value, head: P.state.head, view: P.views.now, page: P.page });
    const submit = (text) => {
      if (P.state.running || !loaded || !text.trim()) return;
      P.setState({ running: true });
      fire("send", { chat: P.state.chat, text, ...settings() });
      if (text === area.value) { area.value = ""; fit(); }
      P.scroller.follow(true);
    };
    const stop = () => fire("stop", { chat: P.state.chat });
    const refresh = () => {
      const running = P.state.running;
      send.replaceChildren(running ? "Stop" : "Send", el("kbd", { text: running ? "Esc" : "Enter" }));
      send.setAttribute("aria-label", running ? "Stop the reply (Escape)" : "Send the message (Enter)");
      send.disabled = !running && !(loaded && area.value.trim());
      used.textContent = P.state.tokens && context ? `${P.count(P.state.tokens)} of ${P.count(context)} tokens` : "";
    };
    P.host.onChange((host) => {
      [loaded, context] = [host.loaded, host.context];
      words.textContent = host.caption;
      used.setAttribute("data-tip", `How much of the model's context of ${P.count(context)} tokens this conversation fills, as of its latest reply.`);
      refresh();
    });
    send.addEventListener("click", () => { if (P.state.running) stop(); else submit(area.value); area.focus(); });
    area.addEventListener("input", () => { fit(); refresh(); });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(area.value); }
    });
    P.onState(refresh);
    P.calls.send = submit;
    P.calls.stop = stop;
    P.calls.settings = settings;
    P.calls.restore = (text) => { if (!area.value.trim()) area.value = text; fit(); refresh(); area.focus(); };
    P.calls.system = (text) => { system.value = text || ""; mark(); };
    P.calls.focus = () => area.focus({ preventScroll: true });
    refresh();
    if (window.matchMedia("(hover: hover)").matches) P.calls.focus();
  };
})();
