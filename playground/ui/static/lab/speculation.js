// Speculation: what K drafts are worth at an acceptance and a cost, with the measured cases of a speculation benchmark on top.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, formulas: F, lab: L } = P;
  const MAX_K = 16;

  L.theory("speculation", {
    title: "Speculation",
    note: "Drafts are guessed cheaply and verified together. More of them give more tokens a step, until the step costs more than they bring.",
    formula: "E = 1 + α + … + α^K\nspeed-up = E / (K c + v)",
    build: () => {
      let [points, touched] = [[], false];
      const say = (value) => [value.toFixed(2), ""];
      const knob = (options) => L.slider({ ...options, onInput: () => { touched = true; chosen.value = ""; update(); } });
      const alpha = knob({ label: "Acceptance α", tip: "The probability that a draft is accepted once all before it were.", min: 0, max: 1, step: 0.01, value: 0.8, format: (value) => P.format.percent(value) });
      const k = knob({ label: "Drafts K", tip: "Tokens drafted and verified at once.", min: 1, max: MAX_K, step: 1, value: 4, format: (value) => [String(value), ""] });
      const c = knob({ label: "Draft cost c", tip: "The time of one draft token, in plain steps of the target.", min: 0, max: 1, step: 0.01, value: 0.1, format: say });
      const v = knob({ label: "Verify cost v", tip: "The time of the target's step over all drafts, in plain steps: 1 where it waits for memory, more where it waits for arithmetic.", min: 0.8, max: 4, step: 0.01, value: 1, format: say });
      const chosen = L.select({ label: "Measured case", tip: "Sets the sliders to what a case measured.", options: [], onInput: (value) => { touched = true; if (value !== "") take(points[Number(value)]); update(); } });
      const source = el("p", { class: "note" });

      const figures = L.figures([
        { label: "Tokens per step", tip: "Expected: 1 + α + … + α^K." },
        { label: "Speed-up", tip: "Expected tokens over the step's cost K c + v, against plain decoding." },
        { label: "Best K", tip: "The number of drafts with the highest speed-up at this acceptance and these costs, up to 64; 0 where none pays." },
        { label: "Speed-up there", tip: "At the best K." },
      ]);
      const ks = Array.from({ length: MAX_K }, (_, index) => index + 1);
      const table = L.table({ columns: ["K", "tokens per step", "cost", "speed-up"], rows: [], texts: 0, label: "Expected tokens and speed-up by K" });

      // Cases with the same K stand beside each other.
      const beside = (index) => {
        const same = points.map((point, other) => [point, other]).filter(([point]) => Math.round(point.k) === Math.round(points[index].k)).map(([, other]) => other);
        return same.length > 1 ? (same.indexOf(index) / (same.length - 1) - 0.5) * 0.8 : 0;
      };
      const marks = (value, low, high, text) => [[false, "measured", "other", 7], [true, "this case", "rejected", 11]].map(([mine, name, color, size]) => {
        const at = points.map((_, index) => index).filter((index) => (String(index) === chosen.value) === mine);
        const some = at.map((index) => points[index]);
        return {
          x: at.map((index) => points[index].k + beside(index)), y: some.map(value), mode: "markers", name, visible: at.length > 0,
          customdata: some.map((point) => L.safe(`${point.label}: α ${P.written(P.format.percent(point.acceptance))}, c ${P.format.number(point.draft_cost)[0]}, v ${P.format.number(point.verify_cost)[0]}, n = ${point.pairs}`)),
          hovertemplate: `%{customdata}<br>%{y:.3g} ${text}<extra></extra>`,
          marker: { color: P.color(color), size, symbol: some.map((point) => (point.adaptive ? "diamond" : "circle")), line: { width: 0 }, opacity: 1 },
          ...(low ? { error_y: { type: "data", symmetric: false, color: P.color(color), thickness: 1, width: 2, array: some.map((point) => high(point) - value(point)), arrayminus: some.map((point) => value(point) - low(point)) } } : {}),
        };
      });
      const curve = (y, name) => ({ x: ks, y, mode: "lines", name, line: { color: P.color("kv"), width: 2 }, hovertemplate: "K = %{x}: %{y:.3g}<extra>theory</extra>" });
      const here = (y) => ({ x: [k.value], y: [y], mode: "markers", name: "at the sliders", marker: { color: P.color("kv"), size: 11, symbol: "circle-open", line: { width: 2 } }, hovertemplate: "K = %{x}: %{y:.3g}<extra></extra>" });
      const axis = { title: "drafts K", range: [0, MAX_K + 0.5], dtick: 2 };

      const rates = L.plot({ label: "Speed-up by number of drafts", height: 320, make: () => {
        const y = ks.map((one) => F.speedup(F.expectedTokens(alpha.value, one), one, c.value, v.value));
        const measured = points.length ? marks((point) => point.speedup, (point) => point.low, (point) => point.high, "times as fast") : [];
        return { data: [curve(y, "theory"), here(F.speedup(F.expectedTokens(alpha.value, k.value), k.value, c.value, v.value)), ...measured],
          layout: L.layout({ x: axis, y: { title: "speed-up", rangemode: "tozero" }, height: 320, shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, layer: "below", line: { color: P.color("mute"), width: 1, dash: "dot" } }] }) };
      } });
      const tokens = L.plot({ label: "Tokens per step by number of drafts", height: 320, make: () => {
        const measured = points.length ? marks((point) => point.tokens, null, null, "tokens a step") : [];
        return { data: [curve(ks.map((one) => F.expectedTokens(alpha.value, one)), "theory"), here(F.expectedTokens(alpha.value, k.value)), ...measured],
          layout: L.layout({ x: axis, y: { title: "tokens per step", rangemode: "tozero" }, height: 320 }) };
      } });

      const take = (point) => { alpha.value = point.acceptance; k.value = Math.max(1, Math.round(point.k)); c.value = point.draft_cost; v.value = point.verify_cost; };
      const update = () => {
        const expected = F.expectedTokens(alpha.value, k.value);
        const gain = F.speedup(expected, k.value, c.value, v.value);
        const best = F.best(alpha.value, c.value, v.value);
        figures.set([P.format.number(expected), P.format.number(gain, "×"), [String(best.k), ""], P.format.number(best.speedup, "×")]);
        table.fill(ks.map((one) => {
          const all = F.expectedTokens(alpha.value, one);
          return [String(one), P.format.number(all)[0], P.format.number(one * c.value + v.value)[0], `${P.format.number(F.speedup(all, one, c.value, v.value))[0]}×`];
        }));
        rates.says(`At K = ${k.value} ${P.format.number(gain)[0]} times as fast; best at K = ${best.k}.`);
        tokens.says(`At K = ${k.value} ${P.format.number(expected)[0]} tokens a step.`);
        rates.draw();
        tokens.draw();
      };
      return {
        controls: [alpha.node, k.node, c.node, v.node, chosen.node, source],
        content: [figures.node, el("div", { class: "pair" }, el("section", {}, el("h3", { text: "Speed-up" }), rates.node), el("section", {}, el("h3", { text: "Tokens per step" }), tokens.node)), L.folded("As a table", table.node)],
        update,
        measured: ({ speculation }) => {
          points = speculation ? speculation.points : [];
          chosen.options([{ value: "", text: points.length ? "none: free sliders" : "none measured yet" }, ...points.map((point, index) => ({ value: String(index), text: point.label }))]);
          source.replaceChildren();
          if (speculation) source.append(speculation.shipped ? `Points: measured elsewhere (${speculation.machine}, ${L.date(speculation.created)}). ` : `Points: measured here on ${L.date(speculation.created)}. `, el("a", { href: `#lab/result/${speculation.id}`, text: "All of it" }));
          else source.append("No measured points: ", el("a", { href: "#lab/run/speculation", text: "run the speculation benchmark" }), ".");
          if (points.length && !touched) { chosen.value = "0"; take(points[0]); }
          update();
        },
      };
    },
  });
})();
