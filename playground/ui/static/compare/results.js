// What came out of a comparison: which prompt is looked at, the band of what is the same, the table of metrics.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  // One output in three parts: the same as the other's, the first difference, the rest.
  P.compare.output = (output) => el("div", { class: "words" },
    el("span", { class: "same", text: output.same }),
    output.parted ? el("span", { class: "parting", "data-tip": "The texts part here.", tabindex: "0", text: output.first || " " }) : null,
    el("span", { text: output.rest }));

  P.compare.figures = (output) => el("p", { class: "figures-line" }, output.figures, output.run ? " · " : null,
    output.run ? el("a", { href: `#requests/${output.run}`, text: "replay it", "data-tip": "The run that wrote this text, step by step on the Requests page: its blocks, drafts and times. It was a warm-up, so its times are not those below." }) : null);

  P.compare.promptLine = (result, at, go) => {
    const many = result.prompts.length > 1;
    const parted = result.bands.map((bands, prompt) => (bands.some((band) => band.parted) ? prompt : -1)).filter((prompt) => prompt >= 0 && prompt !== at);
    const next = parted.find((prompt) => prompt > at) ?? parted[0] ?? -1;
    const button = (name, label, to) => el("button", { class: "tool", type: "button", "aria-label": label, disabled: to < 0 || to >= result.prompts.length, onclick: () => go(to), text: name });
    return el("div", { class: "prompt-line" },
      many ? el("span", { class: "step-through" }, button("‹", "The prompt before", at - 1), el("span", { text: `Prompt ${at + 1} of ${result.prompts.length}` }), button("›", "The next prompt", at + 1)) : el("span", { class: "step-through", text: "Prompt" }),
      el("span", { class: "asked", text: result.prompts[at], title: result.prompts[at] }),
      result.agreement ? el("span", { class: "agreement" }, result.agreement, next < 0 ? null : " · ", next < 0 ? null : el("button", { type: "button", class: "link", text: "next difference", onclick: () => go(next) })) : null);
  };

  P.compare.bands = (bands, coupled) => el("div", { class: "bands" }, ...bands.map((band) => el("div", {},
    el("div", { class: "band", role: "img", "aria-label": band.text },
      el("i", { class: "common", style: `flex: ${band.share} 0 0` }),
      band.parted ? el("i", { class: "cut" }) : null,
      band.parted ? el("i", { class: "apart", style: `flex: ${1 - band.share} 0 0` }) : null),
    el("p", { class: "said" }, band.text, band.coupled ? " · " : null,
      band.coupled ? el("button", { type: "button", class: "link", onclick: coupled, text: "make it identical: coupled", "data-tip": "Runs it again with coupled verification: drafts are checked against the very draws that the model would make alone." }) : null))));

  P.compare.table = (result, letters, chosen, choose) => {
    const small = (text) => (text ? el("small", { text }) : null);
    const cell = (one) => (one === null ? el("td", { class: "none", text: "—" }) : el("td", { "data-tip": `Median of ${one.n} ${one.n === 1 ? "run" : "runs"}${one.interval ? " with its 95 % bootstrap interval" : ""}.` }, one.number, one.unit ? el("span", { class: "unit", text: ` ${one.unit}` }) : null, small(one.interval), small(one.note)));
    const against = (one) => (one === null ? el("td", {}) : el("td", { class: one.clear ? "" : "unclear", "data-tip": one.tip || "Median of the ratios of the runs that were taken in the same round, with its 95 % bootstrap interval." }, el(one.strong ? "b" : "span", { text: one.text }), small(one.interval)));
    const pick = (row) => () => choose(row.key);
    return el("div", { class: "table-place", tabindex: "0", role: "region", "aria-label": "Metrics" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { text: `median of n = ${result.n}, 95 % interval` }), ...letters.map((letter) => el("th", { text: letter })), ...letters.slice(1).map((letter) => el("th", { text: `${letter} against A` })))),
      el("tbody", {}, ...result.table.map((row) => el("tr", { class: row.key === chosen ? "chosen" : "", onclick: pick(row) },
        el("th", { scope: "row" }, el("button", { type: "button", "data-tip": row.tip, "aria-pressed": String(row.key === chosen), text: row.label })),
        ...row.cells.map(cell), ...row.against.slice(1).map(against))))));
  };

  P.compare.votes = (result, vote) => el("div", { class: "votes", role: "group", "aria-label": "Which reply is better?" },
    el("span", { text: "Which is better? Names and numbers are shown after your vote." }),
    ...result.votes.map(({ choice, label }) => el("button", { class: "button", type: "button", onclick: () => vote(choice), text: label })));
})();
