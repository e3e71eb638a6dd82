// A result: where it comes from, its pictures, the same numbers as tables, its definitions.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const L = P.lab;

  L.result = (id, actions) => {
    const node = el("article", { class: "result", "aria-busy": "true" }, el("p", { class: "note", text: "Reading the result." }));
    const plots = [];
    const problem = el("p", { class: "problem", role: "alert", hidden: true });

    const remove = () => P.sureButton({ class: "button", face: () => "Delete", sure: "Delete for good?", act: () => actions.remove(id) });

    const section = (one) => {
      const parts = [el("h3", { text: one.title })];
      if (one.note) parts.push(el("p", { class: "note", text: one.note }));
      if (one.figure) {
        const { height } = one.figure.light.layout;
        const plot = L.plot({ label: one.title, height, make: () => L.dark() ? one.figure.dark : one.figure.light });
        plot.says(one.says);
        plots.push(plot);
        parts.push(plot.node);
      }
      if (one.columns.length) parts.push(L.table({ columns: one.columns, rows: one.rows, texts: one.texts, label: `${one.title}, as a table` }).node);
      return el("section", {}, ...parts);
    };

    const show = (data) => {
      const facts = [data.machine, data.versions].filter(Boolean).join(" · ");
      const when = [L.date(data.created, true), data.seconds ? `took ${L.clock(data.seconds)}` : ""].filter(Boolean).join(", ");
      const origin = data.shipped ? `Measured elsewhere: ${[data.machine, L.date(data.created)].filter(Boolean).join(", ")}` : when;
      node.replaceChildren(
        el("header", {},
          el("div", { class: "across" }, el("h2", { text: [data.title || data.id, data.what].filter(Boolean).join(", ") }), el("span", { class: "spacer" }),
            el("a", { class: "button", href: new URL(`lab/export/${encodeURIComponent(id)}`, document.baseURI), download: `${id}.json`, text: "Export" }), data.shipped ? null : remove()),
          el("p", { class: "note", text: origin }), el("p", { class: "note", text: data.shipped ? data.versions : facts })),
        problem);
      if (/^quick/.test(data.what)) node.append(el("p", { class: "notice-box", text: "A quick run: it shows that everything works. Its numbers mean nothing." }));
      if (data.error) node.append(el("p", { class: "problem", text: data.error }));
      node.append(...data.sections.map(section));
      if (data.definitions.length) node.append(L.folded("Definitions", el("dl", {}, ...data.definitions.flatMap(([name, text]) => [el("dt", { text: name }), el("dd", { text })]))));
      node.removeAttribute("aria-busy");
      for (const plot of plots) plot.draw();
    };

    L.fetch(`results/${encodeURIComponent(id)}`).then(show, (error) => {
      node.replaceChildren(el("h2", { text: "No such result" }), el("p", { class: "problem", text: error.message }), el("p", {}, el("a", { href: "#lab", text: "Back to the Lab" })));
      node.removeAttribute("aria-busy");
    });
    return { node, refuse: (text) => { problem.textContent = text; problem.hidden = !text; }, show: () => {}, leave: () => { for (const plot of plots) plot.remove(); } };
  };

  // JSON from the server; what went wrong as one sentence.
  L.fetch = async (path) => {
    let response;
    try {
      response = await window.fetch(new URL(`lab/${path}`, document.baseURI));
    } catch {
      throw new Error("The playground does not answer: is it still running?");
    }
    const data = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(data.error || "The playground could not answer this.");
    return data;
  };
})();
