// Roofline: what a step waits for, by batch and context; with the running engine's latest decode steps where they belong.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, formulas: F, lab: L } = P;
  const powers = (from, to) => Array.from({ length: to - from + 1 }, (_, index) => 2 ** (from + index));
  const BATCHES = powers(0, 10);
  const SHAPES = [["kv", "circle"], ["prefill", "diamond"], ["other", "square"]];

  L.theory("roofline", {
    title: "Batch and context",
    note: "A decode step reads every weight and every key and value once. Weights are shared by the batch, the cache is not: that decides what a step waits for.",
    formula: "time ≥ max(bytes / bandwidth, operations / rate)",
    build: ({ models, devices }) => {
      let [known, limits] = [models, devices];
      let steps = [];
      const spread = (from, to) => Array.from({ length: 10 * (to - from) + 1 }, (_, index) => Number((10 ** (from + index / 10)).toPrecision(3)));
      const model = L.select({ label: "Model", tip: "Its parameters, layers, heads and the type of its cache.", options: [], onInput: () => update() });
      const device = L.select({ label: "Limits", tip: "Of a datasheet, as measured here by the Ceilings benchmark, or by hand.", options: [], onInput: (value) => { if (value === "") byHand(); else { setLimits(limits[Number(value)]); update(); } } });
      let exact = null; // the limits that were chosen, between two positions of the sliders; null: what the sliders say
      const byHand = () => { device.value = ""; exact = null; bandwidth.value = bandwidth.value; rate.value = rate.value; update(); };
      const bandwidth = L.slider({ label: "Bandwidth", tip: "Bytes that can be read in a second.", values: spread(9, 13), value: 1.555e12, format: (value) => P.format.number((exact ? exact.bandwidth : value) / 1e9, "GB/s"), onInput: byHand });
      const rate = L.slider({ label: "Arithmetic", tip: "Operations that can be done in a second.", values: spread(10, 16), value: 312e12, format: (value) => P.format.number((exact ? exact.operations : value) / 1e12, "TFLOP/s"), onInput: byHand });
      const setLimits = (one) => { exact = one; bandwidth.value = one.bandwidth; rate.value = one.operations; };
      const batch = L.slider({ label: "Requests at once", tip: "Each computes the tokens below in the step.", values: BATCHES, value: 8, format: (value) => [P.count(value), ""], onInput: () => update() });
      const context = L.slider({ label: "Context", tip: "Tokens of each request in the cache after the step.", values: powers(4, 17), value: 2048, format: (value) => [P.count(value), "tokens"], onInput: () => update() });
      const tokens = L.slider({ label: "Tokens a request", tip: "Computed in the step: 1 decodes, K + 1 verifies K drafts, more is a chunk of a prompt.", values: [1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64, 128, 256, 512, 1024, 2048], value: 1, format: (value) => [P.count(value), value === 1 ? "decode" : value <= 16 ? "verify" : "prefill"], onInput: () => update() });

      const chosen = () => known[Number(model.value)] || known[0];
      const shape = () => { const one = chosen(); return { parameters: one.parameters, weightBits: one.weight_bits, layers: one.layers, heads: one.heads, headDim: one.head_dim, kvBytesPerToken: F.kvBytesPerToken({ layers: one.layers, kvHeads: one.kv_heads, headDim: one.head_dim, dtype: one.kv_dtype in F.DTYPES ? one.kv_dtype : "bfloat16" }) }; };
      const ceiling = () => (exact || { bandwidth: bandwidth.value, operations: rate.value });
      const at = (requests, length) => { const step = F.step(shape(), { batch: requests, context: length, tokens: tokens.value }); return { ...step, ...F.bound(step, ceiling()) }; };
      const contexts = () => [Math.max(16, context.value / 8), context.value, Math.min(131072, context.value * 8)].filter((one, index, all) => all.indexOf(one) === index);
      const short = (length) => (length >= 1024 ? `${length / 1024}k` : String(length));
      const ms = (seconds) => P.format.ms(seconds * 1000);

      const figures = L.figures([
        { label: "Waits for", tip: "The larger of bytes / bandwidth and operations / rate." },
        { label: "Operations per byte", tip: "Of this step: its arithmetic intensity." },
        { label: "Ridge", tip: "Operations per byte at which both limits meet: below it a step waits for memory." },
        { label: "Step, at least", tip: "Estimated: the time of the limit. A real step takes longer." },
        { label: "Tokens, at most", tip: "Estimated: all requests together, decoding or verifying; every token counted." },
        { label: "KV of the bytes", tip: "Share of the bytes read that are keys and values; the rest are weights." },
      ]);
      const says = el("p", { class: "note", role: "status" });
      const table = L.table({ columns: ["requests", "operations per byte", "waits for", "step, at least", "tokens a second, at most", "KV of the bytes"], rows: [], texts: 0, label: "The step by number of requests" });

      const roof = L.plot({ label: "Roofline", height: 340, make: () => {
        const limit = ceiling();
        const ridge = limit.operations / limit.bandwidth;
        const marks = contexts().map((length, index) => {
          const all = BATCHES.map((one) => at(one, length));
          return { x: all.map((one) => one.intensity), y: all.map((one) => one.rate), customdata: BATCHES, mode: "markers", name: `${short(length)} tokens`, marker: { color: P.color(SHAPES[index][0]), symbol: `${SHAPES[index][1]}-open`, size: 7 + 3 * index, line: { width: 1.5 } }, hovertemplate: "%{customdata} requests: %{x:.3g} operations a byte<extra>%{fullData.name}</extra>" };
        });
        const now = at(batch.value, context.value);
        const measured = measuredSteps();
        const xs = [...marks.flatMap((mark) => mark.x), ...measured.map((one) => one.x)];
        const ends = [Math.min(ridge / 10, ...xs) / 2, Math.max(ridge * 10, ...xs) * 2];
        const data = [
          { x: [ends[0], ridge, ends[1]], y: [ends[0] * limit.bandwidth, limit.operations, limit.operations], mode: "lines", name: "limit", showlegend: false, line: { color: P.color("ink"), width: 1.5 }, hoverinfo: "skip" },
          ...marks,
          { x: [now.intensity], y: [now.rate], mode: "markers", name: "at the sliders", marker: { color: P.color("kv"), size: 12 }, hovertemplate: "%{x:.3g} operations a byte<extra></extra>" },
        ];
        if (measured.length) data.push({ x: measured.map((one) => one.x), y: measured.map((one) => one.y), mode: "markers", name: "measured decode steps", marker: { color: P.color("rejected"), symbol: "x", size: 6 }, hovertemplate: "%{x:.3g} operations a byte<extra>measured</extra>" });
        return { data, layout: L.layout({ x: { title: "operations per byte", type: "log", dtick: 1 }, y: { title: "operations per second", type: "log", dtick: 1, exponentformat: "power" }, height: 340 }) };
      } });
      const rates = L.plot({ label: "Tokens per second by requests at once", height: 340, make: () => {
        const data = contexts().map((length, index) => {
          const all = BATCHES.map((one) => at(one, length));
          return { x: BATCHES, y: all.map((one) => one.tokens / one.seconds), customdata: all.map((one) => one.by), mode: "lines+markers", name: `${short(length)} tokens`, line: { color: P.color(SHAPES[index][0]), width: 1.6 }, marker: { size: 8, symbol: all.map((one) => (one.by === "memory" ? `${SHAPES[index][1]}-open` : SHAPES[index][1])) }, hovertemplate: "%{x} requests: %{y:.3s} tokens a second, waits for %{customdata}<extra>%{fullData.name}</extra>" };
        });
        return { data, layout: L.layout({ x: { title: "requests at once (filled: waits for arithmetic)", type: "log", tickvals: BATCHES.filter((_, index) => index % 2 === 0), ticktext: BATCHES.filter((_, index) => index % 2 === 0).map(String) }, y: { title: "tokens per second, at most", type: "log", dtick: 1, exponentformat: "power" }, height: 340 }) };
      } });

      // The engine's latest plain decode steps, as points: operations and bytes as reckoned, the time of the model as measured.
      const measuredSteps = () => {
        const one = chosen();
        if (!one.loaded) return [];
        const now = shape();
        const weights = now.parameters * now.weightBits / 8;
        return steps.filter((step) => step.decode_tokens && !step.prefill_tokens && !step.draft_tokens && step.forward_ms > 0).map((step) => {
          const operations = 2 * now.parameters * step.decode_tokens + 4 * now.layers * now.heads * now.headDim * step.kv_tokens;
          return { x: operations / (weights + step.kv_tokens * now.kvBytesPerToken), y: operations / (step.forward_ms / 1000) };
        });
      };
      const update = () => {
        const now = at(batch.value, context.value);
        figures.set([[now.by, ""], P.format.number(now.intensity), P.format.number(now.ridge), ms(now.seconds), P.format.number(now.tokens / now.seconds, "tok/s"), P.format.percent(now.kv / now.bytes)]);
        table.fill(BATCHES.map((one) => { const found = at(one, context.value); return [P.count(one), P.format.number(found.intensity)[0], found.by, P.written(ms(found.seconds)), P.format.number(found.tokens / found.seconds)[0], P.written(P.format.percent(found.kv / found.bytes))]; }));
        const never = at(1e9, context.value);
        says.hidden = never.by !== "memory";
        says.textContent = never.by === "memory" ? `With ${P.count(context.value)} tokens of context no batch is large enough to wait for arithmetic: each request brings its own cache to read.` : "";
        roof.says(`The step does ${P.format.number(now.intensity)[0]} operations a byte and waits for ${now.by}.`);
        rates.says(`At most ${P.format.number(now.tokens / now.seconds)[0]} tokens a second at ${batch.value} requests.`);
        roof.draw();
        rates.draw();
      };
      const offer = () => {
        model.options(known.map((one, index) => ({ value: String(index), text: one.loaded ? `${one.name} (loaded)` : one.name })));
        device.options([{ value: "", text: "by hand" }, ...limits.map((one, index) => ({ value: String(index), text: one.name }))]);
      };
      offer();
      model.value = "0";
      device.value = "0";
      setLimits(limits[0]);
      P.live.onText((store) => { const before = steps.length; steps = store.steps.slice(-60); if (before + steps.length && chosen().loaded) roof.draw(); });
      return {
        controls: [model.node, device.node, bandwidth.node, rate.node, batch.node, context.node, tokens.node, el("p", { class: "note" }, "Your own limits: ", el("a", { href: "#lab/run/ceilings", text: "measure them" }), ". Choose the loaded model to see its decode steps in the picture.")],
        content: [figures.node, says, el("div", { class: "pair" }, el("section", {}, el("h3", { text: "Roofline" }), roof.node), el("section", {}, el("h3", { text: "Tokens per second" }), rates.node)), L.folded("As a table", table.node)],
        update,
        measured: (found) => {
          const [shown, limit] = [chosen().name, device.value === "" ? null : limits[Number(device.value)].name];
          known = found.model ? [...models, { ...found.model, loaded: true }] : models;
          limits = [...devices, ...found.ceilings];
          offer();
          model.value = String(Math.max(0, known.findIndex((one) => one.name === shown)));
          const index = limits.findIndex((one) => one.name === limit);
          device.value = limit === null ? "" : String(Math.max(0, index));
          if (index >= 0) setLimits(limits[index]);
          update();
        },
      };
    },
  });
})();
