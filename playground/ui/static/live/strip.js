// The headline strip: six figures, each with the line of its last half minute. Values come with the live frames, at most
// four times a second; when the engine rests nothing moves.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;
  const SPAN_MS = 30_000;
  const narrow = window.matchMedia("(max-width: 899px)");

  // [value for the line, [number, unit], what the hover adds]
  const READ = {
    first_token: (now) => [now.first_token_ms, format.ms(now.first_token_ms)],
    rate: (now) => [now.tokens_per_second, [format.rate(now.tokens_per_second)[0], ""]],
    acceptance: (now, store) => {
      const why = !store.facts.speculation ? "Speculation is off: no drafts are made." : now.num_drafts ? `Now: of n = ${P.count(now.num_drafts)} drafts.` : `Drafts are made by ${store.facts.speculation}; none so far.`;
      return [now.acceptance, store.facts.speculation ? format.percent(now.acceptance) : ["—", "off"], why];
    },
    blocks: (now, store) => {
      const total = store.facts.num_blocks;
      if (!total) return [null, format.count(null), "This engine keeps no KV cache, so that there are no blocks."];
      const [used, cached] = [now.blocks_in_use, now.blocks_cached];
      return [used, [format.count(used)[0], `of ${P.count(total)}`], `Now: ${P.count(used)} in use, ${P.count(cached)} cached, ${P.count(total - used - cached)} empty.`];
    },
    memory: (now) => [now.memory_used, format.bytes(now.memory_used), now.memory_used === null ? "" : `Now: ${P.written(format.bytes(now.memory_used))} of ${P.written(format.bytes(now.memory_total))}.`],
    waiting: (now) => [now.waiting, [format.count(now.waiting)[0], now.waiting === 1 ? "request" : "requests"]],
  };

  P.mountStrip = (element, config, store = P.live) => {
    const tiles = config.tiles.map((tile) => {
      const value = el("b", { text: "—" });
      const unit = el("small");
      const picture = P.canvas({ label: "", height: 26 });
      picture.node.setAttribute("aria-hidden", "true");
      picture.node.removeAttribute("tabindex");
      const node = el("div", { class: "tile", tabindex: "0", role: "group", "data-tip": tile.tip, "aria-label": tile.label }, el("span", { class: "label" }, P.long(tile)), el("span", { class: "value" }, value, unit), picture.node);
      return { ...tile, node, value, unit, picture };
    });
    element.append(el("section", { class: "strip", "aria-label": "Engine figures" }, ...tiles.map((tile) => tile.node)));

    const draw = (tile) => {
      tile.picture.height = narrow.matches ? 12 : 26;
      const surface = tile.picture.begin();
      if (!surface) return;
      const { g, width, height } = surface;
      const samples = store.samples.filter((sample) => sample.time_ms > store.time - SPAN_MS);
      const values = samples.map((sample) => READ[tile.name](sample, store)[0] ?? null);
      const known = values.filter((value) => value !== null);
      if (known.length < 2) return;
      const top = Math.max(...known);
      g.strokeStyle = P.color("kv");
      g.lineWidth = 1.2;
      g.lineJoin = "round";
      let before = 0;
      P.trace(g, values.flatMap((value, index) => {
        const time = samples[index].time_ms;
        const rested = index > 0 && time - before > 1500; // nothing was measured in between
        before = time;
        const point = value === null ? null : [width - ((store.time - time) / SPAN_MS) * width, height - 1.5 - (top ? value / top : 0) * (height - 4)];
        return rested ? [null, point] : [point];
      }));
    };

    const show = () => {
      if (store.epoch === null) return;
      for (const tile of tiles) {
        const [, [number, unit], more] = READ[tile.name](store.now, store);
        if (tile.value.textContent !== number) tile.value.textContent = number;
        if (tile.unit.textContent !== unit) tile.unit.textContent = unit;
        const tip = tile.tips ? tile.tips[store.now.memory_source] || tile.tip : tile.tip;
        tile.node.dataset.tip = more ? `${tip} ${more}` : tip;
        tile.node.setAttribute("aria-label", `${tile.label}: ${number} ${unit}`);
        draw(tile);
      }
    };
    store.onText(show);
    P.onRepaint(() => tiles.forEach(draw));
  };
})();
