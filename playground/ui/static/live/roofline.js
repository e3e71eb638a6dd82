// Every step as a point: operations for each byte it had to move, and how fast it did them, under the ceilings that were measured on
// this machine. What a step had to do comes with it, worked out in playground/telemetry/roofline.py.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;
  const HEIGHT = 150;
  const MARGIN = { left: 46, right: 6, top: 10, bottom: 20 };
  const KEEP_MS = 30_000;
  const MOST = 600; // points drawn: the latest
  const KINDS = [["decode", "kv", "One token for every request."], ["verify", "other", "Draft tokens are verified."], ["prefill", "prefill", "At least one request's prompt is read."]];

  const kindOf = (step) => (step.slices.some((slice) => slice.kind) ? "prefill" : step.draft_tokens ? "verify" : "decode");
  const median = (values) => { if (!values.length) return null; const sorted = [...values].sort((a, b) => a - b); return sorted[sorted.length >> 1]; };
  P.roof = {
    kindOf,
    median,
    // The least time of so much work in ms; null where it cannot be told.
    leastMs: (ceilings, flops, bytes) => (ceilings && flops !== null && flops !== undefined ? 1000 * Math.max(flops / ceilings.flops_per_second, bytes / ceilings.bytes_per_second) : null),
    steps: (store, span = KEEP_MS) => { const oldest = store.time - span; return store.steps.filter((step) => step.start_ms > oldest && step.flops && step.forward_ms > 0); },
  };

  const perSecond = (value, unit) => { let power = 0; while (value >= 1000 && power < 5) { value /= 1000; power += 1; } return P.written(format.number(value, `${["", "k", "M", "G", "T", "P"][power]}${unit}/s`)); };

  P.view("roofline", {
    title: "Roofline",
    tip: "One point a step of the last 30 s: operations of the model's forward over the bytes it had to move (FLOP/B: weights as they are stored, once, and KV), and operations per second (FLOP/s, upwards) of measured time. Estimated from the model's shape; activations are left out. The lines are what this machine reached when it was measured.",
    half: true,
    mount: (view) => {
      const { store } = view;
      const picture = P.canvas({ label: "Roofline", height: HEIGHT });
      const legend = el("div", { class: "legend" }, ...KINDS.map(([name, color, tip]) => el("span", { "data-tip": tip, tabindex: "0" }, el("i", { class: `point ${name}`, style: `background: var(--pg-${color})` }), name)),
        el("span", { "data-tip": "The latest step of each kind as fast as the formula says it could be: on its roof.", tabindex: "0" }, el("i", { class: "point hollow" }), "predicted"));
      const words = el("p", { class: "small" });
      view.body.append(picture.node, legend, words);

      let points = [];
      const frameOf = (width, ceilings, steps) => {
        const xs = steps.map((step) => step.flops / step.moved_bytes);
        const ys = steps.map((step) => step.flops / (step.forward_ms / 1000));
        const ridge = ceilings ? ceilings.flops_per_second / ceilings.bytes_per_second : null;
        const decades = (values, spare) => [Math.floor(Math.log10(Math.min(...values)) - spare), Math.ceil(Math.log10(Math.max(...values)) + spare)];
        const [x0, x1] = decades([...xs, ridge, 1].filter((value) => value > 0), 0.1);
        const [y0, y1] = decades([...ys, ceilings?.flops_per_second, (ceilings?.flops_per_second ?? 0) / 100].filter((value) => value > 0), 0);
        const w = width - MARGIN.left - MARGIN.right;
        const h = HEIGHT - MARGIN.top - MARGIN.bottom;
        return {
          x: (value) => MARGIN.left + ((Math.log10(value) - x0) / (x1 - x0)) * w,
          y: (value) => MARGIN.top + (1 - (Math.log10(value) - y0) / (y1 - y0)) * h,
          x0, x1, y0, y1, ridge,
        };
      };

      const latestOf = (drawn) => KINDS.map(([kind]) => drawn.findLast((point) => point.kind === kind)).filter(Boolean);
      const mark = (g, kind, x, y, size, how = "fill") => {
        g.beginPath();
        if (kind === "prefill") g.rect(x - size, y - size, 2 * size, 2 * size);
        else if (kind === "verify") { g.moveTo(x, y - size * 1.3); g.lineTo(x + size * 1.3, y); g.lineTo(x, y + size * 1.3); g.lineTo(x - size * 1.3, y); g.closePath(); }
        else g.arc(x, y, size, 0, 7);
        g[how]();
      };

      const draw = () => {
        const surface = picture.begin();
        if (!surface) return;
        const { g, width } = surface;
        const { ceilings } = store.facts;
        const steps = P.roof.steps(store).slice(-MOST);
        g.font = P.FONT;
        g.textBaseline = "middle";
        points = [];
        if (!ceilings && !steps.length) {
          g.fillStyle = P.color("faint");
          g.font = "12px ui-sans-serif, system-ui, sans-serif";
          g.fillText("A point will appear here for every step.", 0, 12);
          return;
        }
        const axis = frameOf(width, ceilings, steps);
        g.lineWidth = 1;
        g.strokeStyle = P.color("line");
        g.fillStyle = P.color("mute");
        g.textAlign = "right";
        for (let power = axis.y0; power <= axis.y1; power++) {
          const at = Math.round(axis.y(10 ** power)) + 0.5;
          g.beginPath(); g.moveTo(MARGIN.left, at); g.lineTo(width - MARGIN.right, at); g.stroke();
          const [number, unit] = perSecond(10 ** power, "").replace("/s", "").split(" ");
          g.fillText(`${P.axisLabel(Number(number))} ${unit ?? ""}`.trim(), MARGIN.left - 5, at);
        }
        g.textAlign = "center";
        const last = `${P.axisLabel(10 ** axis.x1)} FLOP/B`;
        const room = width - g.measureText(last).width - 16;
        for (let power = axis.x0; power < axis.x1; power++) if (axis.x(10 ** power) < room) g.fillText(P.axisLabel(10 ** power), axis.x(10 ** power), HEIGHT - 8);
        g.textAlign = "right";
        g.fillText(last, width - 1, HEIGHT - 8);
        g.save();
        g.beginPath(); g.rect(MARGIN.left, 0, width - MARGIN.left, HEIGHT - MARGIN.bottom); g.clip();
        if (ceilings) {
          const [left, right] = [10 ** axis.x0, 10 ** axis.x1];
          const roof = (rate) => { const bend = ceilings.flops_per_second / rate; P.trace(g, [[axis.x(left), axis.y(left * rate)], [axis.x(bend), axis.y(ceilings.flops_per_second)], [axis.x(Math.max(right, bend)), axis.y(ceilings.flops_per_second)]]); };
          g.lineWidth = 1.25;
          if (ceilings.memory_bytes_per_second < 0.8 * ceilings.bytes_per_second) { g.setLineDash([3, 3]); g.strokeStyle = P.color("faint"); roof(ceilings.memory_bytes_per_second); g.setLineDash([]); }
          g.strokeStyle = P.color("mute");
          roof(ceilings.bytes_per_second);
        }
        g.globalAlpha = 0.55;
        const colors = Object.fromEntries(KINDS.map(([name, color]) => [name, P.color(color)]));
        for (const step of steps) {
          const [x, y, kind] = [axis.x(step.flops / step.moved_bytes), axis.y(step.flops / (step.forward_ms / 1000)), kindOf(step)];
          g.fillStyle = colors[kind];
          mark(g, kind, x, y, 2.2);
          points.push({ x, y, step, kind });
        }
        g.globalAlpha = 1;
        for (const { x, step, kind } of latestOf(points)) { // hollow: where the formula puts it
          const least = P.roof.leastMs(ceilings, step.flops, step.moved_bytes);
          if (least === null) continue;
          g.strokeStyle = colors[kind];
          g.lineWidth = 1.5;
          mark(g, kind, x, axis.y(step.flops / (least / 1000)), 4, "stroke");
        }
        g.restore();
      };
      picture.hover((x, y) => {
        if (x < 0) return null;
        const near = points.reduce((best, point) => { const far = Math.hypot(point.x - x, point.y - y); return far < 12 && (!best || far <= best.far) ? { ...point, far } : best; }, null);
        if (!near) return null;
        const { step } = near;
        const least = P.roof.leastMs(store.facts.ceilings, step.flops, step.moved_bytes);
        return `Step ${P.count(step.step)}, ${near.kind}: ${P.written(format.number(step.flops / step.moved_bytes, "operations a byte"))}, ${perSecond(step.flops / (step.forward_ms / 1000), "FLOP")}. ${P.written(format.bytes(step.moved_bytes))} moved at least, forward ${P.written(format.ms(step.forward_ms))}${least === null ? "" : `, under the roof ${P.written(format.ms(least))}`}.`;
      });

      const text = () => {
        const { ceilings, work } = store.facts;
        const steps = P.roof.steps(store);
        const decode = steps.filter((step) => kindOf(step) === "decode").slice(-64);
        const share = ceilings && median(decode.map((step) => P.roof.leastMs(ceilings, step.flops, step.moved_bytes) / step.forward_ms));
        view.note(share ? `decode: ${P.written(format.percent(share))} of roof` : "");
        words.textContent = ceilings
          ? `Measured here: ${P.written(format.bytes(ceilings.bytes_per_second))}/s for ${P.written(format.bytes(work.weights_bytes))} of weights${ceilings.memory_bytes_per_second < 0.8 * ceilings.bytes_per_second ? ` (dashed: memory, ${P.written(format.bytes(ceilings.memory_bytes_per_second))}/s)` : ""}, ${perSecond(ceilings.flops_per_second, "FLOP")} in ${ceilings.dtype}.${ceilings.undisturbed ? "" : " Other programs used the processor meanwhile."}`
          : work ? "The ceilings of this machine are measured once, when the engine has rested for 2 s." : "Not known for this run.";
        words.title = ceilings ? ceilings.device : "";
        const said = `Roofline: ${P.count(steps.length)} steps. ${words.textContent}${share ? ` Decode steps reach ${P.written(format.percent(share))} of the roof.` : ""}`;
        view.says(said);
        picture.says(said);
      };
      return { draw, text, slow: true };
    },
  });
})();
