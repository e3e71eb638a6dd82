// What the theory's views are made of: sliders, headline figures, tables, and the frame around them.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const L = P.lab;
  let ids = 0;

  // A slider over numbers from `min` to `max`, or over a list of `values`. `format(value)` is [number, unit].
  L.slider = ({ label, tip, min, max, step, values, value, format = (one) => P.format.number(one), onInput }) => {
    const id = `lab-slider-${++ids}`;
    const at = (position) => (values ? values[position] : position);
    const input = el("input", { type: "range", id, min: values ? 0 : min, max: values ? values.length - 1 : max, step: values ? 1 : step });
    const output = el("output", { for: id });
    const say = () => {
      const [number, unit] = format(control.value);
      output.replaceChildren(el("b", { text: number }), unit ? ` ${unit}` : "");
      input.setAttribute("aria-valuetext", P.written([number, unit]));
    };
    const control = {
      node: el("div", { class: "slider" }, el("label", { for: id, text: label, "data-tip": tip }), output, input),
      get value() { return at(Number(input.value)); },
      // The nearest that the slider can show.
      set value(wanted) {
        input.value = values ? values.reduce((best, one, index) => (Math.abs(Math.log((one || 0.5) / (wanted || 0.5))) < Math.abs(Math.log((values[best] || 0.5) / (wanted || 0.5))) ? index : best), 0) : wanted;
        say();
      },
    };
    input.addEventListener("input", () => { say(); onInput(); });
    control.value = value;
    return control;
  };

  L.select = ({ label, tip, options, onInput }) => {
    const id = `lab-select-${++ids}`;
    const input = el("select", { id });
    input.addEventListener("change", () => onInput(input.value));
    const control = {
      node: el("div", { class: "choose" }, el("label", { for: id, text: label, "data-tip": tip }), input),
      get value() { return input.value; },
      set value(wanted) { input.value = wanted; },
      options(list) {
        const before = input.value;
        input.replaceChildren(...list.map(({ value, text }) => el("option", { value, text })));
        if (list.some(({ value }) => value === before)) input.value = before;
      },
    };
    control.options(options);
    return control;
  };

  // Headline figures: [{label, tip}], then `set([[number, unit], …])`.
  L.figures = (entries) => {
    const values = entries.map(() => el("span", { class: "value" }));
    const node = el("div", { class: "headline" }, ...entries.map(({ label, tip }, index) => el("div", { class: "figure", "data-tip": tip, tabindex: "0" }, el("span", { class: "label", text: label }), values[index])));
    return {
      node,
      set: (all) => all.forEach(([number, unit], index) => values[index].replaceChildren(el("b", { text: number }), unit ? " " : "", unit ? el("small", { text: unit }) : "")),
    };
  };

  // A table; `texts`: how many columns from the left are words.
  L.table = ({ columns, rows, texts = 1, label }) => {
    const side = (index) => (index < texts ? "words" : "number");
    const body = el("tbody");
    const fill = (all) => body.replaceChildren(...all.map((row) => el("tr", {}, ...row.map((cell, index) => (index ? el("td", { class: side(index), text: cell }) : el("th", { class: side(0), scope: "row", text: cell }))))));
    fill(rows);
    const node = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, el("table", {}, el("thead", {}, el("tr", {}, ...columns.map((text, index) => el("th", { class: side(index), scope: "col", text })))), body));
    return { node, fill };
  };

  L.folded = (title, node, open = false) => el("details", { class: "folded", open }, el("summary", { text: title }), node);

  // A view of the theory: sliders at the left, what follows from them at the right. Made when it is first opened.
  // `build(context)` gives {controls: nodes, content: nodes, update(), measured(data)}.
  L.theory = (name, { title, note, formula, build }) => L.views.set(name, {
    title,
    make: (context) => {
      const made = build(context);
      const node = el("article", { class: "theory" },
        el("header", {}, el("h2", { text: title }), el("p", { class: "note", text: note })),
        el("div", { class: "bench" },
          el("div", { class: "knobs" }, ...made.controls, el("p", { class: "formula", text: formula })),
          el("div", { class: "outcome" }, ...made.content)));
      return { node, update: made.update, measured: made.measured };
    },
  });
})();
