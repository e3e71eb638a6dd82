// What the cards of the Models page share: a card, rows of figures, a bar of memory.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  const quantity = ([number, unit]) => el("span", { class: "quantity" }, unit ? `${number} ` : number, unit ? el("small", { text: unit }) : null);

  P.models = {
    quantity,

    card: (title, note, ...children) => el("section", { class: "card", "aria-label": title }, el("header", {}, el("h2", { text: title }), note), ...children),

    // [{label, value: [number, unit], tip}] as lines of a label and a figure.
    figures: (rows) => el("dl", { class: "figures-list" }, ...rows.map((row) => el("div", { "data-tip": row.tip, tabindex: "0" }, el("dt", { text: row.label }), el("dd", {}, quantity(row.value))))),

    problem: (text) => el("p", { class: "problem", role: "alert", text }),

    // Parts of the memory as one bar: [[name, bytes, css class]], of `total` bytes. What is beyond the total is drawn, too.
    bar: (parts, total) => {
      const whole = Math.max(total || 0, parts.reduce((sum, part) => sum + part[1], 0)) || 1;
      const written = (bytes) => P.written(P.format.bytes(bytes));
      const shown = parts.filter(([, bytes]) => bytes > 0);
      const free = total ? total - parts.reduce((sum, part) => sum + part[1], 0) : 0;
      const text = [...shown.map(([name, bytes]) => `${name} ${written(bytes)}`), ...(total ? [`of ${written(total)}`] : [])].join(", ");
      return el("div", { class: "memory-bar", role: "img", "aria-label": text },
        el("div", { class: "bar" },
          ...shown.map(([name, bytes, kind]) => el("i", { class: kind, style: `width:${(100 * bytes) / whole}%`, "data-tip": `${name}: ${written(bytes)}` })),
          total && total < whole ? el("b", { style: `left:${(100 * total) / whole}%`, "data-tip": `All there is: ${written(total)}` }) : null),
        el("div", { class: "legend" }, ...shown.map(([name, , kind]) => el("span", {}, el("i", { class: kind }), name)), free > 0 ? el("span", {}, el("i", { class: "free" }), "free") : null));
    },
  };
})();
