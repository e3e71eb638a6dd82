// Loading: the form of the configuration, what it would take, and how a load goes on.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const WAIT_MS = 300;

  P.mountModelLoad = (element, props, watch, fire, config) => {
    let timer = 0;
    let latest = 0;
    let filled = "";
    let touched = false;
    let [busy, blocked] = [false, false];
    const ask = () => { window.clearTimeout(timer); timer = window.setTimeout(() => fire("check", { values: form.values() }), WAIT_MS); };
    const form = P.form({ ...config, open: ["Model"], onChange: () => { touched = true; ask(); } });
    const load = el("button", { class: "button strong", type: "submit", text: "Load" });
    const reset = el("button", { class: "quiet", type: "button", text: "As loaded", "data-tip": "Fill the form with the configuration that is loaded now.", onclick: () => { touched = false; filled = ""; fill(P.host.now); } });
    const needs = el("div", { class: "needs" });
    const cancel = el("button", { class: "button", type: "button", text: "Cancel", onclick: () => fire("stop_load", {}) });
    const line = el("progress", { max: "1", "aria-label": "Progress of the load" });
    const text = el("span", { class: "text" });
    const progress = el("div", { class: "load-progress", role: "status", hidden: true }, text, line, cancel);
    const ended = el("div", { role: "status" });
    const start = (event) => { event.preventDefault(); ended.replaceChildren(); touched = false; fire("start_load", { values: form.values() }); };
    element.append(P.models.card("Load a model", reset, el("form", { onsubmit: start, autocomplete: "off" }, form.node, needs, progress, ended, el("div", { class: "end-row" }, load))));

    const show = (value) => {
      form.blame(value.field);
      const parts = [];
      if (value.rows.length) {
        const [weights, draft, kv, available] = value.bar;
        parts.push(el("h3", { text: `What ${value.name} needs` }), P.models.bar([["weights", weights, "weights"], ["draft", draft, "draft"], ["KV cache", kv, "kv"]], available), P.models.figures(value.rows));
      }
      if (value.error) parts.push(P.models.problem(value.error));
      else if (value.note) parts.push(el("p", { class: "hint", text: value.note }));
      needs.replaceChildren(...parts);
    };
    P.bind(props, watch, (value) => {
      if (!value || value.rev <= latest) return;
      latest = value.rev;
      if (!value.rows) return;
      show(value);
      blocked = value.blocked;
      load.disabled = busy || blocked;
    });

    const fill = (host) => {
      if (!host || !host.details || touched) return;
      const values = JSON.stringify(host.details.values);
      if (values === filled) return;
      filled = values;
      form.set(host.details.values);
      if (P.pages.current === "models") ask();
    };
    let told = null;
    P.host.onChange((host) => {
      const { loading } = host;
      const running = Boolean(loading && !loading.ended);
      if (busy && !host.busy) ask();
      busy = Boolean(host.busy);
      load.disabled = busy || blocked;
      progress.hidden = !running;
      if (running) {
        const percent = loading.done ? `, ${P.written(P.format.percent(loading.done))}` : "";
        text.textContent = `${loading.model}: ${loading.text}${percent}`;
        if (loading.done) line.value = loading.done; else line.removeAttribute("value");
      }
      const said = loading && loading.ended ? JSON.stringify([loading.phase, loading.error, loading.note, loading.number]) : "";
      if (told !== null && said !== told) { // what ended before this page was opened is no news
        const parts = [];
        if (said && loading.phase === "failed") parts.push(P.models.problem(loading.error));
        if (said && loading.phase === "cancelled") parts.push(el("p", { class: "hint", text: "Loading was cancelled." }));
        if (said && loading.note) parts.push(el("p", { class: "hint", text: loading.note }));
        ended.replaceChildren(...parts);
      }
      told = said;
      fill(host);
    });
    P.pages.onShow((name) => { if (name === "models") ask(); });
    P.calls.chooseModel = (value) => {
      touched = true;
      form.set({ ...form.values(), model: value, revision: "", draft_model: "" });
      form.show("Model");
      ask();
      element.scrollIntoView({ block: "nearest", behavior: P.calm.matches ? "auto" : "smooth" });
    };
  };
})();
