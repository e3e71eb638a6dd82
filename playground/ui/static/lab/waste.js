// Block waste: what the last, partly filled block of each sequence costs, by block size; with the running engine's own fill.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, formulas: F, lab: L } = P;
  const SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
  const LENGTHS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

  L.theory("waste", {
    title: "Block waste",
    note: "A sequence's last block is filled in part. Large blocks waste more of it; small ones need longer block tables.",
    formula: "wasted = size · ⌈n / size⌉ − n,   averaged over all lengths n",
    build: () => {
      let live = null;
      const knob = (options) => L.slider({ ...options, onInput: () => update() });
      const tokens = (value) => [P.count(value), "tokens"];
      const shortest = knob({ label: "Shortest sequence", tip: "Lengths from here to the longest are equally likely.", values: LENGTHS, value: 16, format: tokens });
      const longest = knob({ label: "Longest sequence", tip: "Prompt and reply together.", values: LENGTHS, value: 512, format: tokens });
      const size = knob({ label: "Block size", tip: "Tokens in a block.", values: SIZES, value: 16, format: tokens });
      const reserved = knob({ label: "Reserved without blocks", tip: "What a contiguous cache keeps for every sequence: max_model_len.", values: LENGTHS.slice(6), value: 2048, format: tokens });

      const figures = L.figures([
        { label: "Fill of the last block", tip: "Expected share of the last block's slots that hold a token." },
        { label: "Wasted slots", tip: "Expected share of all slots in a sequence's blocks that hold nothing." },
        { label: "Blocks a sequence", tip: "Mean number: the length of its block table." },
        { label: "Wasted without blocks", tip: "Share of a contiguous reservation of that many tokens that holds nothing." },
      ]);
      const measuredText = el("p", { class: "note", role: "status" });
      const table = L.table({ columns: ["block size", "wasted tokens", "wasted", "fill of the last", "blocks"], rows: [], texts: 0, label: "Waste by block size" });
      const at = (one) => { const [low, high] = [shortest.value, longest.value].sort((a, b) => a - b); return F.waste({ shortest: low, longest: high, size: one }); };
      const contiguous = () => 1 - Math.min(1, at(1).tokens / reserved.value);

      const shares = L.plot({ label: "Wasted share of slots by block size", height: 340, make: () => {
        const data = [
          { x: SIZES, y: SIZES.map((one) => at(one).share), mode: "lines+markers", name: "expected", line: { color: P.color("kv"), width: 2 }, marker: { size: 6 }, hovertemplate: "blocks of %{x}: %{y:.2%} wasted<extra>theory</extra>" },
          { x: [size.value], y: [at(size.value).share], mode: "markers", name: "at the sliders", marker: { color: P.color("kv"), size: 12, symbol: "circle-open", line: { width: 2 } }, hovertemplate: "blocks of %{x}: %{y:.2%} wasted<extra></extra>" },
          { x: [SIZES[0], SIZES.at(-1)], y: [contiguous(), contiguous()], mode: "lines", name: "contiguous reservation", line: { color: P.color("weights"), dash: "dash", width: 1.4 }, hovertemplate: "%{y:.2%} wasted<extra>contiguous</extra>" },
        ];
        if (live) data.push({ x: [live.size], y: [live.share], mode: "markers", name: "measured: this engine", marker: { color: P.color("other"), size: 10, symbol: "diamond" }, hovertemplate: "blocks of %{x}: %{y:.2%} wasted<extra>measured</extra>" });
        return { data, layout: L.layout({ x: { title: "tokens in a block", type: "log", tickvals: SIZES, ticktext: SIZES.map(String) }, y: { title: "wasted share of slots", tickformat: ".0%", range: [0, 1.02] }, height: 340 }) };
      } });

      const update = () => {
        const now = at(size.value);
        figures.set([P.format.percent(now.lastFill), P.format.percent(now.share), P.format.number(now.blocks), P.format.percent(contiguous())]);
        table.fill(SIZES.map((one) => { const found = at(one); return [String(one), P.format.number(found.wasted)[0], P.written(P.format.percent(found.share)), P.written(P.format.percent(found.lastFill)), P.format.number(found.blocks)[0]]; }));
        shares.says(`${P.written(P.format.percent(now.share))} of the slots are wasted in blocks of ${size.value}.`);
        shares.draw();
      };
      // What the engine's live frames say: only blocks that a request holds count. The last moment with any is kept.
      const look = (store) => {
        let [blocks, filled] = [0, 0];
        for (let id = 1; id < store.holders.length; id++) if (store.holders[id].length) { blocks += 1; filled += store.fill[id]; }
        const block = store.facts.block_size;
        if (blocks && block) live = { size: block, share: 1 - filled / (blocks * block), blocks };
        if (live) measuredText.textContent = `Measured in this engine ${blocks ? "now" : "when it last held any"}: ${live.blocks} blocks of ${live.size} tokens in use, ${P.written(P.format.percent(live.share))} of their slots empty.`;
        else measuredText.textContent = "Measured in this engine: — (no request holds blocks. Send a message on the Chat page, and its fill appears here.)";
        if (blocks) shares.draw();
      };
      P.live.onText(look);
      look(P.live);
      return {
        controls: [shortest.node, longest.node, size.node, reserved.node],
        content: [figures.node, el("h3", { text: "By block size" }), shares.node, measuredText, L.folded("As a table", table.node)],
        update,
        measured: () => {},
      };
    },
  });
})();
