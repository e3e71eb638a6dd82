// What the memory in use is used for. The sum is measured; weights and KV blocks are computed from their sizes; what remains is
// drawn too, and named as what it is. Above over time, at a scale that shows the parts; below the whole of the memory as one bar.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;
  const HEIGHT = 108;
  const BAR = { top: 97, tall: 7 };
  const LEFT = 50;

  // [key, color, name, definition]; from the bottom up. A part is null where it does not apply.
  const PARTS = [
    ["weights", "weights", "Weights", "Estimated: the sizes of the model's weights, a draft model's included."],
    ["used", "kv", "KV in use", "Estimated: KV blocks that requests hold, times the bytes of a block."],
    ["cached", "idle", "KV cached", "Estimated: KV blocks that are kept for later prompts, times the bytes of a block."],
    ["empty", "hover", "KV empty", "Estimated: the rest of the KV cache, which is taken from the GPU when the engine starts."],
    ["process", "accepted", "Activations and other", "Measured: what this process took from the GPU beyond weights and KV cache. Activations, workspace, memory kept for later."],
    ["rest", null, "Not attributed", ""],
    ["free", "panel", "Free", ""],
  ];
  const OUTLINED = ["empty", "free"];
  // What two of them are, by where the sum comes from: [name, definition].
  const REST = {
    gpu: ["Not attributed", "Measured: in use on the GPU beyond what this process took for tensors. Other programs, and the driver's own."],
    process: ["Rest of the process", "Measured: in use by this process beyond weights and KV blocks. Activations, Python, libraries, which cannot be told apart here. KV blocks that were never used take no memory."],
  };
  const FREE = {
    gpu: ["Free", "Measured: not in use on the GPU."],
    process: ["Free or others'", "Measured: the memory that this process may use, less what it uses. Other programs have a part of it."],
  };

  const roundBytes = (value) => { const [number, unit] = format.bytes(value); return `${P.axisLabel(Number(number.replace(",", "")))} ${unit}`; };

  P.view("memory", {
    title: "Memory",
    tip: "Memory in use and what it is used for. The sum is measured; its parts say where they come from.",
    half: true,
    mount: (view) => {
      const { store } = view;
      const picture = P.canvas({ label: "Memory", height: HEIGHT });
      const values = new Map();
      const rows = new Map();
      const list = el("div", { class: "parts" });
      for (const [key, color, name, tip] of [...PARTS].reverse()) {
        const row = [el("i", color ? { style: `background: var(--pg-${color})${OUTLINED.includes(key) ? "; outline: 1px solid var(--pg-line); outline-offset: -1px" : ""}` } : { class: "swatch-rest" }), el("span", { text: name, "data-tip": tip, tabindex: "0" }), el("b", { text: "—" })];
        values.set(key, row[2]);
        rows.set(key, row);
        list.append(...row);
      }
      view.body.append(picture.node, list);

      const partsOf = (sample) => {
        const { weights_bytes: weights, block_bytes: block, num_blocks: total } = store.facts;
        if (sample.memory_used === null) return null;
        const used = sample.blocks_in_use === null ? null : sample.blocks_in_use * block;
        const cached = sample.blocks_cached === null ? null : sample.blocks_cached * block;
        const onGpu = sample.memory_reserved !== null;
        const empty = onGpu && used !== null ? Math.max(0, total * block - used - cached) : null;
        const own = weights + (used || 0) + (cached || 0) + (empty || 0);
        const process = onGpu ? Math.max(0, sample.memory_reserved - own) : null;
        const free = sample.memory_total === null ? null : Math.max(0, sample.memory_total - sample.memory_used);
        return { weights, used, cached, empty, process, rest: Math.max(0, sample.memory_used - own - (process || 0)), free };
      };

      // All of the memory as one bar, its parts at their true share.
      const drawBar = (g, width, parts, total) => {
        const scale = (width - LEFT - 1) / total;
        let x = LEFT;
        for (const [key, color] of PARTS) {
          const w = (parts[key] || 0) * scale;
          if (w && key !== "free") {
            g.save();
            g.beginPath(); g.rect(x, BAR.top, Math.max(w, 0.5), BAR.tall); g.clip();
            if (color) { g.fillStyle = P.color(color); g.fillRect(x, BAR.top, w, BAR.tall); } else { g.translate(0, BAR.top); hatch(g, BAR.tall, width); }
            g.restore();
          }
          x += w;
        }
        g.strokeStyle = P.color("faint");
        g.strokeRect(LEFT + 0.5, BAR.top + 0.5, width - LEFT - 1, BAR.tall - 1);
        g.fillStyle = P.color("mute");
        g.fillText("all of it", LEFT - 5, BAR.top + BAR.tall / 2);
      };

      const hatch = (g, height, width) => { g.lineWidth = 1; g.strokeStyle = P.color("faint"); g.globalAlpha = 0.45; for (let x = -height; x < width; x += 5) { g.beginPath(); g.moveTo(x, height); g.lineTo(x + height, 0); g.stroke(); } g.globalAlpha = 1; };
      let cursor = null;
      const draw = () => {
        const surface = picture.begin();
        if (!surface) return;
        const { g, width } = surface;
        const height = BAR.top - 4; // of the picture over time
        const samples = P.recent(store).filter((sample) => sample.memory_used !== null);
        const axis = P.timeAxis(store, width, LEFT);
        const most = Math.max(...samples.map((sample) => sample.memory_used), 1);
        const total = store.now.memory_total;
        let top = 2 ** Math.ceil(Math.log2(most));
        if (total && total < top * 2) top = Math.max(top, total);
        const y = (bytes) => 6 + (1 - bytes / top) * (height - 13);
        g.font = P.FONT;
        g.textAlign = "right";
        g.textBaseline = "middle";
        g.lineWidth = 1;
        for (const value of [0, top / 2, top]) {
          const at = Math.round(y(value)) + 0.5;
          g.strokeStyle = P.color("line");
          g.beginPath(); g.moveTo(axis.left, at); g.lineTo(width, at); g.stroke();
          g.fillStyle = P.color("mute");
          g.fillText(value ? roundBytes(value) : "0", axis.left - 5, at);
        }
        if (!samples.length) return;
        g.save();
        g.beginPath(); g.rect(axis.left, 0, width - axis.left, height); g.clip();
        const known = samples.map((sample) => ({ x: axis.x(sample.time_ms), parts: partsOf(sample) }));
        known.push({ x: axis.x(store.time), parts: known.at(-1).parts });
        let floor = known.map(() => 0);
        for (const [key, color] of PARTS) {
          if (key === "free" || known.at(-1).parts[key] === null) continue;
          const ceiling = floor.map((bytes, index) => bytes + (known[index].parts[key] || 0));
          g.beginPath();
          ceiling.forEach((bytes, index) => g.lineTo(known[index].x, y(bytes)));
          for (let index = known.length - 1; index >= 0; index--) g.lineTo(known[index].x, y(floor[index]));
          g.closePath();
          if (color) { g.fillStyle = P.color(color); g.fill(); } else { g.save(); g.clip(); hatch(g, height, width); g.restore(); }
          floor = ceiling;
        }
        g.strokeStyle = P.color("mute");
        P.trace(g, known.map((one, index) => [one.x, y(floor[index])]));
        if (total && total <= top) { g.setLineDash([3, 3]); g.strokeStyle = P.color("ink"); g.beginPath(); g.moveTo(axis.left, y(total)); g.lineTo(width, y(total)); g.stroke(); g.setLineDash([]); }
        if (cursor !== null) { g.strokeStyle = P.color("faint"); g.beginPath(); g.moveTo(Math.round(cursor) + 0.5, 4); g.lineTo(Math.round(cursor) + 0.5, height - 6); g.stroke(); }
        g.restore();
        if (total) drawBar(g, width, known.at(-1).parts, total);
      };
      picture.hover((x) => {
        cursor = x < LEFT ? null : x;
        draw();
        const under = cursor === null ? null : P.nearest(P.recent(store), P.timeAxis(store, picture.node.clientWidth, LEFT).time(cursor));
        const parts = under && partsOf(under);
        if (!parts) return null;
        return `${P.ago(store, under.time_ms)}: ${P.written(format.bytes(under.memory_used))}. ${PARTS.filter(([key]) => parts[key] !== null).map(([key, , name]) => `${name} ${P.written(format.bytes(parts[key]))}`).join(", ")}.`;
      });

      const text = () => {
        const now = store.now;
        view.note(now.memory_used === null ? "—" : `${P.written(format.bytes(now.memory_used))} of ${P.written(format.bytes(now.memory_total))}`);
        const parts = partsOf(now) || {};
        for (const [key] of PARTS) {
          const value = P.written(format.bytes(parts[key]));
          if (values.get(key).textContent !== value) values.get(key).textContent = value;
          const applies = !["empty", "process"].includes(key) || (parts[key] !== null && parts[key] !== undefined);
          for (const node of rows.get(key)) node.hidden = !applies;
        }
        for (const [key, words] of [["rest", REST], ["free", FREE]]) {
          const [name, tip] = words[now.memory_source === "process" ? "process" : "gpu"];
          rows.get(key)[1].textContent = name;
          rows.get(key)[1].dataset.tip = tip;
        }
        const words = PARTS.filter(([key]) => parts[key] !== null && parts[key] !== undefined).map(([key, , name]) => `${name} ${P.written(format.bytes(parts[key]))}`).join(", ");
        view.says(`Memory: ${P.written(format.bytes(now.memory_used))} in use. ${words}.`);
        picture.says(`Memory over 30 seconds, now ${P.written(format.bytes(now.memory_used))}: ${words}.`);
      };
      return { draw, text, slow: true };
    },
  });
})();
