// The models that are on this machine: choosing one puts it into the form.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  P.mountModelList = (element, props, watch, fire) => {
    const path = el("input", { type: "text", id: "model-folder", "aria-label": "Folder of models or GGUF file", placeholder: "Add a folder of models, or a .gguf file", autocomplete: "off", spellcheck: "false" });
    const add = el("button", { class: "button", type: "submit", text: "Add" });
    const form = el("form", { class: "add", onsubmit: (event) => { event.preventDefault(); fire("add_folder", { folder: path.value }); } }, path, add);
    const refresh = el("button", { class: "quiet", type: "button", text: "Look again", "data-tip": "Read the folders and the hub's cache anew.", onclick: () => fire("refresh", {}) });
    const body = el("div");
    const problem = el("div");
    element.append(P.models.card("On this machine", refresh, body, form, problem));

    const row = (model) => {
      const choose = el("button", { class: "name", type: "button", text: model.name, disabled: Boolean(model.problem), "data-tip": model.problem || `${model.value || "The bundled model"}. Choose it to see what it needs.`, onclick: () => P.calls.chooseModel(model.value) });
      const remove = model.folder ? el("button", { class: "tool", type: "button", "aria-label": `Take ${model.folder} off the list`, "data-tip": `Take ${model.folder} off the list. Its files stay.`, onclick: () => fire("remove_folder", { folder: model.folder }) }, P.icon("close")) : null;
      return el("tr", { class: model.problem ? "broken" : "" },
        el("th", { scope: "row" }, choose, model.problem ? el("span", { class: "why", text: model.problem }) : null),
        el("td", { text: model.parameters }), el("td", { text: model.dtype }), el("td", { class: "wide", text: model.context }),
        el("td", {}, P.models.quantity(model.size)), el("td", { class: "wide", text: model.source }), el("td", { class: "end" }, remove));
    };
    const list = (models) => {
      body.replaceChildren(el("div", { class: "scroll" }, el("table", { class: "plain models" },
        el("thead", {}, el("tr", {}, el("th", { text: "Model" }), el("th", { text: "Parameters" }), el("th", { text: "Type" }), el("th", { class: "wide", text: "Context" }), el("th", { text: "Files" }), el("th", { class: "wide", text: "From" }), el("th", {}, el("span", { class: "offscreen", text: "Remove" })))),
        el("tbody", {}, ...models.map(row)))));
    };
    let latest = 0;
    P.bind(props, watch, (value) => {
      if (!value) { body.replaceChildren(el("p", { class: "hint", text: "The bundled models, the folders that you add and the hub's download cache will be listed here." })); return; }
      if (value.rev > latest) { latest = value.rev; list(value.models); }
      if (value.asked === null) return; // only read anew: what was said before still holds, and somebody may be typing
      if (!value.error && path.value === value.asked) path.value = "";
      problem.replaceChildren(...(value.error ? [P.models.problem(value.error)] : []));
    });
    let asked = false;
    P.pages.onShow((name) => { if (name === "models" && !asked) { asked = true; fire("refresh", {}); } });
  };
})();
