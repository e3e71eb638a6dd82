// What is compared, before it runs: the bar's buttons with the panel that each opens, and the list of presets.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  const count = (text) => text.split(/\n[ \t]*\n/).filter((one) => one.trim()).length;

  const labels = {
    prompts: (draft, sets) => {
      const set = sets.find(({ key }) => key === draft.prompt_set);
      return set ? `Prompts: ${set.name} (${set.count})` : `Prompts: own (${count(draft.prompts)})`;
    },
    runs: (draft) => {
      const runs = `${draft.warmups} warm-up${draft.warmups === "1" ? "" : "s"}, n = ${draft.repeats}`;
      return draft.mode === "concurrent" ? `Concurrent, ${runs}: shows contention` : `Sequential, ${runs}, order shuffled`;
    },
    sampling: (draft) => `${Number(draft.temperature) === 0 ? "Greedy" : `T = ${draft.temperature}`}, ${draft.max_tokens} tokens, seed ${draft.seed}`,
  };
  P.compare.labels = labels;

  const { input, select } = P.compare;
  P.compare.panels = {
    prompts: (draft, sets, changed) => {
      const own = el("textarea", { rows: "6", value: draft.prompts, "aria-label": "Text of the prompts", "data-field": "prompts" });
      own.addEventListener("input", () => { draft.prompts = own.value; changed(); });
      const choose = () => {
        const set = sets.find(({ key }) => key === draft.prompt_set);
        own.readOnly = Boolean(set);
        if (set) { draft.prompts = set.prompts.join("\n\n"); own.value = draft.prompts; }
        note.textContent = set ? "A fixed set. Choose “of my own” to write others." : "A blank line begins the next prompt.";
        changed();
      };
      const note = el("small", {});
      const fields = el("div", { class: "fields" },
        select(draft, "prompt_set", "Prompts", "A fixed set, the same in every comparison, or prompts of your own.", [...sets.map(({ key, name, count: n }) => [key, `${name} (${n})`]), ["own", "of my own"]], choose),
        select(draft, "chat", "Sent as", "A message under the model's chat template, or plain text that the model goes on with.", [[true, "chat messages"], [false, "plain text to go on with"]]),
        select(draft, "arrival", "Sent", "All prompts together make a batch; one by one measures a single request; joining sends each once the one before has its first tokens.", [["together", "all at once"], ["one_by_one", "one after another"], ["joining", "joining one after another"]]));
      choose();
      return el("div", {}, fields, own, note);
    },
    runs: (draft, sets, changed) => el("div", { class: "fields" },
      select(draft, "mode", "Runs", "Sequential is fair: one engine works at a time. Concurrent runs all at once and shows how they disturb each other.", [["sequential", "sequential (fair)"], ["concurrent", "concurrent (contention)"]], changed),
      input(draft, "repeats", "Repeats", "Timed rounds; each runs every side once, in shuffled order."),
      input(draft, "warmups", "Warm-ups", "Runs before the timed ones. The last of them gives the text and its log-probabilities.")),
    sampling: (draft) => el("div", { class: "fields" },
      input(draft, "temperature", "Temperature", "0 always takes the most probable token."),
      input(draft, "top_p", "Top-p", "Draw only from the most probable tokens that reach this probability together; 1 is off."),
      input(draft, "top_k", "Top-k", "Draw only from this many most probable tokens; 0 is off."),
      input(draft, "max_tokens", "Most tokens", "Of each reply."),
      input(draft, "seed", "Seed", "The same for every side: of the sampling, and of the order of the runs."),
      select(draft, "ignore_eos", "A reply ends", "At the full length every side does the same work.", [[false, "where the model ends it"], [true, "at the full length"]])),
  };

  const groups = (presets) => [...new Set(presets.map(({ group }) => group))];
  P.compare.presetSelect = (presets, chosen, onChoose, disabled) => {
    const node = el("select", { "aria-label": "Preset", disabled }, el("option", { value: "*", text: "All presets…" }), chosen ? null : el("option", { value: "", text: "Of my own" }), ...groups(presets).map((group) => el("optgroup", { label: group }, ...presets.filter((one) => one.group === group).map(({ key, name }) => el("option", { value: key, text: name })))));
    node.value = chosen || "";
    node.addEventListener("change", () => onChoose(node.value));
    return el("span", { class: "button select" }, node);
  };

  P.compare.start = (presets, onPreset, onOwn) => el("div", { class: "start" },
    el("h2", { text: "See what one switch changes" }),
    el("p", { text: "Two to four configurations answer the same prompts. Their texts appear here side by side with the first difference marked, and below them what each cost, with intervals and every single run." }),
    ...groups(presets).map((group) => el("section", {}, el("h3", { text: group }), el("div", { class: "cards" }, ...presets.filter((one) => one.group === group).map(({ key, name, expect }) => el("button", { type: "button", class: "card", onclick: () => onPreset(key) }, el("b", { text: name }), el("span", { text: expect })))))),
    el("p", { class: "or" }, el("button", { type: "button", class: "button", onclick: onOwn, text: "Compare configurations of my own" })));

  P.compare.saved = (saved, open, remove) => el("ul", { class: "saved" }, ...saved.map((one) => el("li", {},
    el("button", { type: "button", class: "open", onclick: () => open(one.id) }, el("span", { text: one.title }), el("small", { text: `${P.compare.when(one.created)}${one.voted ? " · voted" : ""}` })),
    P.sureButton({ class: "tool", "aria-label": `Delete ${one.title}`, face: () => P.icon("trash"), sure: "Delete?", act: () => remove(one.id) }))));
})();
