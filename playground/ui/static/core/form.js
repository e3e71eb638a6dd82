// A form made from a list of groups (playground/ui/config_form.py): draws the fields, shows those that the choices call for,
// gives and takes one flat object of texts. What a value may be is the server's to judge.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  let forms = 0;

  // `open`: titles of the groups that are not folded. `onChange(values)` after every change that a person makes.
  P.form = ({ groups, values = {}, open = [], onChange = () => {} }) => {
    const id = `form-${++forms}`;
    const fields = new Map();
    const sections = [];

    const make = (field) => {
      const name = `${id}-${field.name}`;
      const input = field.kind === "choice"
        ? el("select", { id: name }, ...field.choices.map(({ value, missing }) => el("option", { value, text: missing ? `${value} (not available yet)` : value, disabled: missing })))
        : el("input", { id: name, type: "text", autocomplete: "off", spellcheck: "false", placeholder: field.placeholder });
      const node = el("label", { class: `field${field.wide ? " wide" : ""}`, for: name, "data-tip": field.tip }, el("span", { text: field.label }), input);
      input.addEventListener("input", () => { refresh(); onChange(form.values()); });
      fields.set(field.name, { ...field, node, input });
      return node;
    };

    const node = el("div", { class: "form" }, ...groups.map((group) => {
      const changed = el("small", { class: "changed" });
      const section = el("details", { class: "group", open: open.includes(group.title) }, el("summary", {}, el("span", { text: group.title }), changed), el("div", { class: "fields" }, ...group.fields.map(make)));
      sections.push({ node: section, names: group.fields.map((field) => field.name), changed });
      return section;
    }));

    const isShown = (name) => { const { when } = fields.get(name); return !when || (when.values.includes(fields.get(when.field).input.value) && isShown(when.field)); };
    const isSet = ({ name, input, ...field }) => isShown(name) && input.value.trim() !== "" && input.value.trim() !== field.default;
    const refresh = () => {
      for (const [name, field] of fields) {
        field.node.hidden = !isShown(name);
        field.node.classList.toggle("set", isSet(field));
      }
      for (const section of sections) {
        const count = section.names.filter((name) => isSet(fields.get(name))).length;
        section.changed.textContent = count ? `${count} changed` : "";
        section.node.hidden = section.names.every((name) => fields.get(name).node.hidden);
      }
    };

    const form = {
      node,
      values: () => Object.fromEntries([...fields].map(([name, { input }]) => [name, input.value])),
      // Names that are missing are set to their defaults.
      set: (wanted) => {
        for (const [name, field] of fields) field.input.value = wanted[name] ?? field.default;
        refresh();
      },
      // Marks the field that a refusal is about, and shows it; null takes the mark away.
      blame: (name) => {
        for (const [other, field] of fields) field.input.toggleAttribute("aria-invalid", other === name);
        if (name && fields.has(name)) fields.get(name).node.closest("details").open = true;
      },
      show: (title) => { for (const [index, group] of groups.entries()) if (group.title === title) sections[index].node.open = true; },
    };
    form.set(values);
    return form;
  };
})();
