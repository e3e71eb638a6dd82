// What the scheduler did for each request in the last seconds, step by step, and below what the steps spent their time on.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;
  const SPAN_MS = 4000;
  const LEFT = 38;
  const FEW_ROWS = 3;
  const ROW = 21;
  const MOST_ROWS = 16;
  const SPLIT_HEIGHT = 52;
  const KINDS = ["decode", "prefill", "computed again"];
  const PARTS = [
    ["schedule_ms", "schedule", "mute", "Deciding which requests run how many tokens."],
    ["draft_ms", "draft", "other", "Making draft tokens."],
    ["prepare_ms", "prepare", "idle", "Laying the requests out as one batch."],
    ["forward_ms", "forward", "kv", "The model over the batch."],
    ["sample_ms", "sample", "accepted", "Drawing tokens, and judging drafts."],
    ["post_ms", "post", "post", "Accounting, and the text of the tokens."],
  ];

  const median = (values) => { if (!values.length) return null; const sorted = [...values].sort((a, b) => a - b); const half = sorted.length >> 1; return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2; };

  P.view("requests", {
    title: "Requests",
    tip: "One row a request, from left to right in time: waiting for its turn, its prompt being read (prefill), then a mark a step that gave it tokens, darker for more. A preempted request gave its blocks to others and is computed again.",
    mount: (view) => {
      const { store } = view;
      const lanes = P.canvas({ label: "Requests over time", height: FEW_ROWS * ROW });
      const split = P.canvas({ label: "Time of the steps", height: SPLIT_HEIGHT });
      const legend = el("div", { class: "legend" },
        ...[["striped", "", "waiting"], ["", "prefill", "prefill"], ["", "kv", "decode"], ["", "rejected", "preempted"], ["again", "", "computed again"]].map(([kind, color, text]) =>
          el("span", {}, el("i", kind ? { class: kind } : { style: `background: var(--pg-${color})` }), text)));
      const stepNote = el("span", { class: "note" });
      const values = new Map();
      const parts = el("div", { class: "legend columns" }, ...PARTS.map(([key, name, color, tip]) => {
        values.set(key, el("b", { text: "—" }));
        return el("span", { "data-tip": `${tip} Median of the steps of the last ${SPAN_MS / 1000} s, measured in ms.`, tabindex: "0" }, el("i", { style: `background: var(--pg-${color})` }), name, values.get(key));
      }));
      view.body.append(lanes.node, legend, el("div", { class: "below" }, el("span", { text: "Step time, ms", tabindex: "0", "data-tip": "What each step spent its time on. A step runs the model once over whatever is due." }), stepNote), split.node, parts);

      const span = () => Math.min(SPAN_MS, store.span); // a short recording is shown larger
      const lookBack = () => `last ${P.spanText(span())}`;
      const axisOf = (width) => P.timeAxis(store, width, LEFT, span());
      const rows = () => {
        const oldest = store.time - span();
        const seen = [...store.requests.values()].filter((request) => request.state !== "finished" || request.ended_ms > oldest).sort((a, b) => a.id - b.id);
        return { shown: seen.slice(-MOST_ROWS), total: seen.length };
      };
      let tall = ROW;

      const drawLanes = () => {
        const { shown } = rows();
        lanes.height = shown.length > FEW_ROWS ? 6 * ROW : FEW_ROWS * ROW;
        const surface = lanes.begin();
        if (!surface) return;
        const { g, width, height } = surface;
        const axis = axisOf(width);
        tall = Math.min(ROW, height / Math.max(1, shown.length));
        g.font = P.FONT;
        g.textBaseline = "middle";
        g.lineWidth = 1;
        g.strokeStyle = P.color("hover");
        for (let second = 0; second <= span() / 1000; second++) { const x = Math.round(axis.x(store.time - second * 1000)) - 0.5; g.beginPath(); g.moveTo(x, 0); g.lineTo(x, height); g.stroke(); }
        let most = 1;
        for (const slices of store.slices.values()) for (const slice of slices) if (slice.step.start_ms > axis.oldest && slice.kind === 0) most = Math.max(most, slice.emitted);
        shown.forEach((request, index) => {
          const y = index * tall + Math.max(1, tall * 0.2);
          const h = Math.max(3, tall * 0.6);
          if (tall >= 10) { g.fillStyle = P.color(request.id === store.followed ? "ink" : "mute"); g.fillText(`#${request.id}`, 0, y + h / 2); }
          g.save();
          g.beginPath(); g.rect(axis.left, 0, width - axis.left, height); g.clip();
          const waitedUntil = request.started_ms ?? (request.state === "finished" ? request.ended_ms : store.time);
          waiting(g, axis, request.queued_ms, waitedUntil, y, h);
          if (request.state === "preempted") waiting(g, axis, request.preempted_ms, store.time, y, h);
          for (const slice of store.slices.get(request.id) || []) {
            const x0 = axis.x(slice.step.start_ms);
            const x1 = axis.x(slice.step.start_ms + slice.step.duration_ms);
            if (x1 < axis.left) continue;
            const w = Math.max(1, x1 - x0 - (x1 - x0 > 3 ? 1.5 : 0.35));
            if (slice.kind) {
              g.fillStyle = P.color("prefill");
              g.fillRect(x0, y, w, h);
              if (slice.kind === 2) { g.fillStyle = P.color("rejected"); g.fillRect(x0, y, w, Math.max(1.5, h / 4)); }
            } else {
              g.globalAlpha = most > 1 ? 0.3 + 0.7 * ((slice.emitted - 1) / (most - 1)) : 0.75;
              g.fillStyle = P.color("kv");
              if (slice.emitted) g.fillRect(x0, y, w, h);
              g.globalAlpha = 1;
            }
          }
          if (request.preempted_ms !== null) { g.fillStyle = P.color("rejected"); g.fillRect(axis.x(request.preempted_ms) - 1.5, y - 1, 3, h + 2); }
          g.restore();
        });
        if (!shown.length) { g.fillStyle = P.color("faint"); g.textAlign = "left"; g.font = "12px ui-sans-serif, system-ui, sans-serif"; g.fillText(store.steps.length ? "No request in these four seconds." : "A row will appear here for every request: write a message to make one.", 0, 12); }
      };

      const waiting = (g, axis, from, until, y, h) => {
        const [x0, x1] = [Math.max(axis.left, axis.x(from)), axis.x(until)];
        if (x1 - x0 < 1) return;
        g.fillStyle = P.color("hover");
        g.fillRect(x0, y, x1 - x0, h);
        g.fillStyle = P.color("faint");
        g.globalAlpha = 0.5;
        for (let x = x1 - 1; x > x0; x -= 4) g.fillRect(x, y, 1, h);
        g.globalAlpha = 1;
      };

      const recentSteps = () => { const oldest = store.time - span(); let first = store.steps.length; while (first > 0 && store.steps[first - 1].start_ms > oldest) first -= 1; return store.steps.slice(first); };
      const drawSplit = () => {
        const surface = split.begin();
        if (!surface) return;
        const { g, width, height } = surface;
        const axis = axisOf(width);
        const steps = recentSteps();
        const sorted = steps.map((step) => step.duration_ms).sort((a, b) => a - b);
        const top = P.roundUp(sorted[Math.floor(sorted.length * 0.98)] || sorted.at(-1) || 10); // one slow step does not flatten the rest
        const bottom = height - 5;
        g.font = P.FONT;
        g.textAlign = "right";
        g.textBaseline = "middle";
        for (const [value, y] of [[top, 5.5], [0, bottom + 0.5]]) {
          g.strokeStyle = P.color("line");
          g.lineWidth = 1;
          g.beginPath(); g.moveTo(axis.left, y); g.lineTo(width, y); g.stroke();
          g.fillStyle = P.color("mute");
          g.fillText(P.axisLabel(value), axis.left - 6, y);
        }
        g.save();
        g.beginPath(); g.rect(axis.left, 0, width - axis.left, height); g.clip();
        for (const step of steps) {
          const x0 = axis.x(step.start_ms);
          const w = Math.max(1, axis.x(step.start_ms + step.duration_ms) - x0 - 0.35);
          let y = bottom;
          for (const [key, , color] of PARTS) {
            const h = (step[key] / top) * (bottom - 5.5);
            g.fillStyle = P.color(color);
            g.fillRect(x0, y - h, w, h);
            y -= h;
          }
        }
        g.restore();
      };

      const stepAt = (x) => {
        const time = axisOf(lanes.node.clientWidth).time(x);
        return recentSteps().reduce((best, step) => { const away = Math.abs(step.start_ms + step.duration_ms / 2 - time); return away < step.duration_ms / 2 + 12 && (!best || away < best.away) ? { step, away } : best; }, null)?.step;
      };
      lanes.hover((x, y) => {
        if (x < 0) return null;
        const request = rows().shown[Math.floor(y / tall)];
        if (!request) return null;
        const time = axisOf(lanes.node.clientWidth).time(x);
        const slices = store.slices.get(request.id) || [];
        const slice = slices.find((one) => time >= one.step.start_ms - 1 && time <= one.step.start_ms + one.step.duration_ms + 1);
        const whole = `#${request.id}: prompt of ${P.count(request.prompt_tokens)} tokens (${P.count(request.cached_tokens)} cached), ${P.count(request.output_tokens)} generated`;
        if (!slice) return `${whole}, ${request.state}${request.preemptions ? `, preempted ${request.preemptions} times` : ""}.`;
        const drafts = slice.drafts ? `, ${slice.accepted} of ${slice.drafts} drafts accepted` : "";
        return `#${request.id}, step ${P.count(slice.step.step)}: ${KINDS[slice.kind]}, ${slice.tokens} ${slice.tokens === 1 ? "token" : "tokens"} run, ${slice.emitted} emitted${drafts}, ${P.written(format.ms(slice.step.duration_ms))}.`;
      });
      lanes.node.addEventListener("click", (event) => { const request = rows().shown[Math.floor(event.offsetY / tall)]; if (request) store.choose(request.id); });
      split.hover((x) => {
        const step = x < LEFT ? null : stepAt(x);
        if (!step) return null;
        return `Step ${P.count(step.step)}: ${P.written(format.ms(step.duration_ms))} (${PARTS.map(([key, name]) => `${name} ${format.ms(step[key])[0]}`).join(", ")}); ${step.prefill_tokens} prompt and ${step.decode_tokens} other tokens of ${step.slices.length} ${step.slices.length === 1 ? "request" : "requests"}.`;
      });

      const text = () => {
        const { total, shown } = rows();
        view.note(total > shown.length ? `latest ${shown.length} of ${P.count(total)} · ${lookBack()}` : lookBack());
        const steps = recentSteps();
        const made = (key) => key !== "draft_ms" || store.facts.speculation; // without drafts there is no time of making them
        for (const [key] of PARTS) values.get(key).textContent = format.number(made(key) ? median(steps.map((step) => step[key])) : null)[0];
        const typical = median(steps.map((step) => step.duration_ms));
        stepNote.textContent = steps.length ? `median ${format.number(typical)[0]} · n = ${P.count(steps.length)}` : "";
        const running = store.unfinished;
        view.says(`Requests: ${running.filter((one) => one.state === "running").length} running, ${running.filter((one) => one.state !== "running").length} waiting. ${shown.slice(-5).map((one) => `Request ${one.id} ${one.state}, ${one.output_tokens} tokens.`).join(" ")}`);
        lanes.says(`Requests over the last 4 seconds: ${total ? shown.map((one) => `#${one.id} ${one.state}`).join(", ") : "none"}.`);
        split.says(`Time of the steps over the last 4 seconds: median ${P.written(format.ms(typical))}, of which forward ${P.written(format.ms(median(steps.map((step) => step.forward_ms))))}.`);
      };
      return { draw: () => { drawLanes(); drawSplit(); }, text };
    },
  });
})();
