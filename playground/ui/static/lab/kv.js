// KV bytes: by shape of the model, type, context, window and batch.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, formulas: F, lab: L } = P;
  const powers = (from, to) => Array.from({ length: to - from + 1 }, (_, index) => 2 ** (from + index));
  const HEADS = [1, 2, 3, 4, 5, 6, 8, 9, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128];
  const SHOWN = ["float32", "bfloat16", "int8", "fp8"];
  const CONTEXTS = powers(7, 17);

  L.theory("kv", {
    title: "KV cache size",
    note: "Every token keeps a key and a value in each layer and KV head. Fewer KV heads, fewer bits or a window are what makes it small.",
    formula: "bytes a token = 2 · layers · KV heads · (head dim · bytes + scale)",
    build: ({ models }) => {
      let known = models;
      const knob = (options) => L.slider({ ...options, onInput: () => { preset.value = ""; update(); } });
      const whole = (value) => [P.count(value), ""];
      const preset = L.select({ label: "Model", tip: "Sets the sliders to a model's shape.", options: [], onInput: (value) => { if (value !== "") take(known[Number(value)]); update(); } });
      const layers = knob({ label: "Layers", tip: "Decoder layers.", min: 1, max: 128, step: 1, value: 32, format: whole });
      const heads = knob({ label: "Attention heads", tip: "Query heads. They do not change the cache; with as many KV heads it would be MHA.", values: HEADS, value: 32, format: whole });
      const kvHeads = knob({ label: "KV heads", tip: "Heads that keys and values are kept for: as many as attention heads (MHA), fewer (GQA), one (MQA).", values: HEADS, value: 8, format: whole });
      const headDim = knob({ label: "Head dimension", tip: "Numbers in one key or value.", values: [16, 32, 48, 64, 80, 96, 128, 160, 192, 256], value: 128, format: whole });
      const context = knob({ label: "Context", tip: "Tokens of a sequence, prompt and reply.", values: CONTEXTS, value: 8192, format: (value) => [P.count(value), "tokens"] });
      const window_ = knob({ label: "Window", tip: "Sliding window in every layer: only the last so many tokens are kept. All: none.", values: [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 1e9], value: 1e9, format: (value) => (value === 1e9 ? ["all", ""] : [P.count(value), "tokens"]) });
      const batch = knob({ label: "Sequences", tip: "At the same time, nothing shared.", values: powers(0, 9), value: 1, format: whole });
      const dtype = L.select({ label: "Type of keys and values", tip: "int8 and fp8 have a byte of scale for each head of a token.", options: Object.keys(F.DTYPES).map((name) => ({ value: name, text: name })), onInput: () => { preset.value = ""; update(); } });
      dtype.value = "bfloat16";

      const shape = (type = dtype.value, kv = kvHeads.value) => ({ layers: layers.value, kvHeads: kv, headDim: headDim.value, dtype: type });
      const held = (length, type, kv) => F.kvBytes(shape(type, kv), { context: length, window: window_.value, batch: batch.value });
      const figures = L.figures([
        { label: "A token", tip: "Bytes of KV that one token takes over all layers, scales counted." },
        { label: "A sequence", tip: "Of the context, or of the window where that is shorter." },
        { label: "All sequences", tip: "Nothing shared, no block partly filled." },
        { label: "With full heads", tip: "As many KV heads as attention heads, in the same type." },
      ]);
      const table = L.table({ columns: ["context", ...SHOWN], rows: [], texts: 0, label: "KV bytes by context and type" });
      const sizes = L.plot({ label: "KV bytes by context", height: 380, make: () => {
        const looks = { float32: ["post", "dashdot"], bfloat16: ["kv", "solid"], int8: ["prefill", "dash"] };
        const names = { int8: "int8, fp8" };
        const hover = (values) => values.map((value) => P.written(P.format.bytes(value)));
        const line = (name, values, color, dash, width = 1.6) => ({ x: CONTEXTS, y: values, customdata: hover(values), mode: "lines", name, line: { color: P.color(color), dash, width }, hovertemplate: "%{x:,} tokens: %{customdata}<extra>%{fullData.name}</extra>" });
        const data = Object.entries(looks).map(([type, [color, dash]]) => line(names[type] || type, CONTEXTS.map((one) => held(one, type)), color, dash));
        if (heads.value !== kvHeads.value) data.push(line(`${dtype.value}, ${heads.value} KV heads`, CONTEXTS.map((one) => held(one, dtype.value, heads.value)), "other", "dot"));
        const now = held(context.value);
        data.push({ x: [context.value], y: [now], customdata: hover([now]), mode: "markers", name: "at the sliders", marker: { color: P.color("kv"), size: 12, symbol: "circle-open", line: { width: 2 } }, hovertemplate: "%{x:,} tokens: %{customdata}<extra></extra>" });
        const ticks = Array.from({ length: 12 }, (_, index) => 2 ** (10 + 4 * index)).filter((value) => value < 2 ** 52);
        return { data, layout: L.layout({ x: { title: "tokens in the context", type: "log", tickvals: CONTEXTS.filter((_, index) => index % 2 === 0), ticktext: CONTEXTS.filter((_, index) => index % 2 === 0).map((one) => (one < 1024 ? String(one) : `${one / 1024}k`)) }, y: { title: "KV bytes of all sequences", type: "log", tickvals: ticks, ticktext: ticks.map((value) => P.written(P.format.bytes(value)).replace(/\.0+ /, " ")) }, height: 380 }) };
      } });

      const take = (model) => {
        layers.value = model.layers; heads.value = model.heads; kvHeads.value = model.kv_heads; headDim.value = model.head_dim;
        dtype.value = model.kv_dtype in F.DTYPES ? model.kv_dtype : "bfloat16";
        window_.value = model.window || 1e9;
      };
      const update = () => {
        const full = held(context.value, dtype.value, heads.value);
        const all = held(context.value);
        figures.set([P.format.bytes(F.kvBytesPerToken(shape())), P.format.bytes(all / batch.value), P.format.bytes(all), P.format.bytes(full)]);
        table.fill(CONTEXTS.map((one) => [P.count(one), ...SHOWN.map((type) => P.written(P.format.bytes(held(one, type))))]));
        sizes.says(`${P.written(P.format.bytes(all))} at ${P.count(context.value)} tokens.`);
        sizes.draw();
      };
      const offer = () => preset.options([{ value: "", text: "by hand" }, ...known.map((model, index) => ({ value: String(index), text: model.loaded ? `${model.name} (loaded)` : model.name }))]);
      offer();
      preset.value = "0";
      take(known[0]);
      return {
        controls: [preset.node, layers.node, heads.node, kvHeads.node, headDim.node, dtype.node, context.node, window_.node, batch.node],
        content: [figures.node, el("h3", { text: "By context" }), sizes.node, L.folded("As a table", table.node)],
        update,
        measured: ({ model }) => {
          const name = preset.value === "" ? null : known[Number(preset.value)].name;
          known = model ? [...models, { ...model, loaded: true }] : models;
          offer();
          preset.value = name === null ? "" : String(Math.max(0, known.findIndex((one) => one.name === name)));
          update();
        },
      };
    },
  });
})();
