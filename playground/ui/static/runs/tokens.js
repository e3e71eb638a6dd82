// The text of a recorded request as far as the playhead: accepted drafts tinted, a bonus token underlined with dots, rejected
// drafts as struck ghosts. Pointing at a token says what is known of it.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;
  const SAYS = { target: "The target's own token", accepted: "A draft that was accepted", bonus: "The target's token on top of accepted drafts", rejected: "A draft that was rejected" };

  P.runTokens = (rows) => {
    const nodes = rows.map(([time, text, origin, logprob, step]) => {
      const known = logprob === null ? "" : `, probability ${P.written(format.percent(Math.exp(logprob)))}`;
      return { time, node: el("span", { class: `token ${origin}`, "data-tip": `${SAYS[origin]}, step ${P.count(step)}, at ${P.written(format.ms(time))}${known}.`, hidden: true, text: text || (origin === "rejected" ? "✕" : "") }) };
    });
    const node = el("div", { class: "tokens" }, ...nodes.map((one) => one.node));
    let shown = 0;
    return {
      node,
      count: (kind) => rows.filter((row, index) => index < shown && row[2] === kind).length,
      // Tokens that were there at this time.
      draw: (time) => {
        while (shown < nodes.length && nodes[shown].time <= time) { nodes[shown].node.hidden = false; shown += 1; }
        while (shown > 0 && nodes[shown - 1].time > time) { shown -= 1; nodes[shown].node.hidden = true; }
      },
    };
  };
})();
