// The memory calculator: numbers in, memory out; the arithmetic is the server's (playground/ui/calculator.py).
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  P.mountCalculator = (element, props, watch, fire, config) => {
    const inputs = new Map();
    let latest = 0;
    const fields = el("div", { class: "fields" }, ...config.fields.map(({ name, label, tip }) => {
      const input = el("input", { type: "text", id: `calculator-${name}`, autocomplete: "off", spellcheck: "false", oninput: () => { match(); ask(); } });
      inputs.set(name, input);
      return el("label", { class: "field", for: input.id, "data-tip": tip }, el("span", { text: label }), input);
    }));
    const results = el("div", { class: "results" });
    const presets = el("div", { class: "presets", role: "group", "aria-label": "Published examples" });
    const buttons = new Map();
    const values = () => Object.fromEntries([...inputs].map(([name, input]) => [name, input.value]));
    const ask = () => fire("calculate", { values: values() });
    const set = (wanted) => { for (const [name, input] of inputs) if (name in wanted) input.value = wanted[name]; match(); };
    const match = () => {
      const now = values();
      for (const [button, wanted] of buttons) button.setAttribute("aria-pressed", String(Object.entries(wanted()).every(([name, value]) => now[name] === value)));
    };
    const preset = (label, wanted) => {
      const button = el("button", { class: "button", type: "button", text: label, "aria-pressed": "false", onclick: () => { set(wanted()); ask(); } });
      buttons.set(button, wanted);
      presets.append(button);
    };
    preset("The loaded model", () => (P.host.now && P.host.now.details ? P.host.now.details.shape : { parameters: "" }));
    for (const [label, wanted] of Object.entries(config.presets)) preset(label, () => wanted);
    element.append(P.models.card("Memory calculator", null, presets, el("div", { class: "halves" }, fields, results)));

    const draw = (value) => {
      for (const [name, input] of inputs) input.toggleAttribute("aria-invalid", name === value.field);
      if (value.error) { results.replaceChildren(P.models.problem(value.error)); return; }
      const [weights, kv, memory] = value.bar;
      results.replaceChildren(
        P.models.bar([["weights", weights, "weights"], ["KV cache", kv, "kv"]], memory),
        P.models.figures(value.rows),
        ...(value.too_large ? [P.models.problem(value.too_large)] : []),
        el("p", { class: "hint", text: value.decimal }),
        el("table", { class: "plain" },
          el("thead", {}, el("tr", {}, el("th", { text: "KV cache" }), ...value.table.columns.map((text) => el("th", { text })))),
          el("tbody", {}, ...value.table.rows.map(([label, ...cells]) => el("tr", {}, el("th", { scope: "row", text: label }), ...cells.map((cell) => el("td", {}, P.models.quantity(cell))))))));
    };
    set(Object.values(config.presets)[0]);
    draw(config.first);
    P.bind(props, watch, (value) => { if (value && value.rev > latest) { latest = value.rev; draw(value); } });
  };
})();
