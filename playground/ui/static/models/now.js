// What is loaded: the model's facts, its memory as predicted and as measured, and the way to unload it.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  P.mountModelNow = (element, props, watch, fire) => {
    const unload = el("button", { class: "button", type: "button", text: "Unload", "data-tip": "Stop the engine and free its memory. A reply that is being written is stopped.", onclick: () => fire("unload_model", {}) });
    const body = el("div");
    const problem = el("div");
    element.append(P.models.card("Loaded now", unload, body, problem));

    const measured = (rows) => el("table", { class: "plain" },
      el("thead", {}, el("tr", {}, el("th", { text: "Memory" }), el("th", { text: "Predicted" }), el("th", { text: "Measured" }), el("th", { text: "Error" }))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, el("th", { scope: "row", text: row.label, "data-tip": row.tip, tabindex: "0" }), el("td", {}, P.models.quantity(row.predicted)), el("td", {}, el("b", {}, P.models.quantity(row.measured))), el("td", {}, P.models.quantity(row.error))))));

    let said = "";
    P.host.onChange((host) => {
      unload.disabled = !host.loaded || Boolean(host.busy);
      if (host.loaded) problem.replaceChildren();
      const now = JSON.stringify(host.details || null);
      if (now === said) return;
      said = now;
      if (!host.details) {
        body.replaceChildren(el("p", { class: "hint", text: "No model is loaded. Choose one from the list, look at what it needs, and load it: its facts and its memory will be shown here." }));
        return;
      }
      body.replaceChildren(
        el("dl", { class: "facts" }, ...host.details.facts.map(({ label, text, tip }) => el("div", { "data-tip": tip, tabindex: "0" }, el("dt", { text: label }), el("dd", { text })))),
        measured(host.details.rows));
    });
    P.bind(props, watch, (value) => problem.replaceChildren(...(value && value.error ? [P.models.problem(value.error)] : [])));
  };
})();
