// Small parts of the compare page: the marks of its sides, labelled fields, files for the browser to keep.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  // A side is told by its colour and by the shape of its mark.
  const COLORS = ["kv", "other", "prefill", "post"];
  const SHAPES = ["circle", "square", "triangle", "diamond"];
  const compare = P.compare = {
    color: (side) => P.color(COLORS[side]),
    mark: (side) => el("span", { class: `mark ${SHAPES[side]}`, style: `--side: var(--pg-${COLORS[side]})`, "aria-hidden": "true" }),
    // Fills the path of a side's mark around a point.
    dot: (g, side, x, y, size) => {
      g.beginPath();
      const shape = SHAPES[side];
      if (shape === "circle") g.arc(x, y, size, 0, 2 * Math.PI);
      else if (shape === "square") g.rect(x - size * 0.9, y - size * 0.9, size * 1.8, size * 1.8);
      else if (shape === "triangle") { g.moveTo(x, y - size * 1.15); g.lineTo(x + size * 1.15, y + size * 0.9); g.lineTo(x - size * 1.15, y + size * 0.9); g.closePath(); }
      else { g.moveTo(x, y - size * 1.3); g.lineTo(x + size * 1.3, y); g.lineTo(x, y + size * 1.3); g.lineTo(x - size * 1.3, y); g.closePath(); }
      g.fill();
    },
    // Draws a part anew only where what it shows has changed: what is read or focused stays where it is.
    keyed: (node) => {
      let shown = null;
      return (value, make) => {
        const key = JSON.stringify(value);
        if (key === shown) return;
        shown = key;
        node.replaceChildren(...[make()].flat().filter(Boolean));
      };
    },
    input: (draft, name, label, tip, wide = false) => {
      const input = el("input", { type: "text", inputmode: "decimal", autocomplete: "off", value: draft[name], "data-field": name });
      input.addEventListener("input", () => { draft[name] = input.value; });
      return el("label", { class: `field${wide ? " wide" : ""}`, "data-tip": tip }, el("span", { text: label }), input);
    },
    select: (draft, name, label, tip, choices, onChange = () => {}) => {
      const input = el("select", { "data-field": name }, ...choices.map(([value, text]) => el("option", { value: String(value), text })));
      input.value = String(draft[name]);
      input.addEventListener("input", () => { draft[name] = choices[input.selectedIndex][0]; onChange(); });
      return el("label", { class: "field wide", "data-tip": tip }, el("span", { text: label }), input);
    },
  };

  // A value { rev, download: { name, type, text } } becomes a file that the browser keeps.
  P.mountDownload = (element, props, watch) => {
    let done = 0;
    const problem = el("p", { class: "problem", hidden: true, role: "alert" });
    element.append(problem);
    P.bind(props, watch, (value) => {
      if (!value || !value.rev || value.rev <= done) return;
      done = value.rev;
      problem.hidden = !value.problem;
      problem.textContent = value.problem ? value.problem.text : "";
      if (!value.download) return;
      const url = URL.createObjectURL(new Blob([value.download.text], { type: value.download.type }));
      el("a", { href: url, download: value.download.name }).click();
      window.setTimeout(() => URL.revokeObjectURL(url), 10_000);
    });
  };
  compare.when = (text) => new Date(text).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
})();
