// The waterfall of one request over its whole time: waiting, prefill chunks, decode steps, preemptions; with the playhead.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;
  const HEIGHT = 54;
  const LANE = [6, 28];
  const NAMES = { queued: "waiting", prefill: "prefill", decode: "decode", recomputed: "computed again after the preemption", preempted: "preempted, waiting" };
  const LEGEND = { queued: "waiting", prefill: "prefill", decode: "decode", recomputed: "computed again", preempted: "preempted" };

  P.waterfall = (spans, duration, seek) => {
    const list = spans.map(([kind, start, end, step, tokens, emitted, drafts, accepted]) => ({ kind, start, end, step, tokens, emitted, drafts, accepted }));
    const most = Math.max(1, ...list.map((span) => span.emitted));
    const total = (kind) => list.filter((span) => span.kind === kind).reduce((sum, span) => sum + span.end - span.start, 0);
    const words = Object.keys(NAMES).filter((kind) => list.some((span) => span.kind === kind)).map((kind) => `${NAMES[kind]} ${P.written(format.ms(total(kind)))}`).join(", ");
    const picture = P.canvas({ label: `Waterfall: ${words}.`, height: HEIGHT, className: "waterfall" });
    let head = 0;
    const x = (time, width) => (time / Math.max(1, duration)) * (width - 1);

    const stripes = (g, x0, w, color) => { g.fillStyle = P.color("hover"); g.fillRect(x0, LANE[0], w, LANE[1]); g.fillStyle = P.color(color); g.globalAlpha = 0.6; for (let at = x0; at < x0 + w; at += 4) g.fillRect(at, LANE[0], 1, LANE[1]); g.globalAlpha = 1; };
    const draw = () => {
      const surface = picture.begin();
      if (!surface) return;
      const { g, width } = surface;
      g.fillStyle = P.color("hover");
      g.fillRect(0, LANE[0] + LANE[1], width, 1);
      for (const span of list) {
        const x0 = x(span.start, width);
        const w = Math.max(1, x(span.end, width) - x0 - (x(span.end, width) - x0 > 4 ? 1 : 0));
        if (span.kind === "queued" || span.kind === "preempted") { stripes(g, x0, w, span.kind === "queued" ? "faint" : "rejected"); continue; }
        g.fillStyle = P.color(span.kind === "decode" ? "kv" : "prefill");
        if (span.kind === "decode") g.globalAlpha = 0.45 + 0.55 * (span.emitted / most);
        g.fillRect(x0, LANE[0], w, LANE[1]);
        g.globalAlpha = 1;
        if (span.kind === "recomputed") { g.fillStyle = P.color("rejected"); g.fillRect(x0, LANE[0], w, 4); }
        if (span.drafts > span.accepted) { g.fillStyle = P.color("rejected"); g.fillRect(x0, LANE[0] + LANE[1] - 4, w, 4); }
      }
      g.font = P.FONT;
      g.textBaseline = "middle";
      g.fillStyle = P.color("mute");
      for (const part of [0, 0.25, 0.5, 0.75, 1]) {
        g.textAlign = part === 0 ? "left" : part === 1 ? "right" : "center";
        g.fillText(P.written(format.ms(part * duration)), part * (width - 1), HEIGHT - 8);
      }
      const at = Math.round(x(head, width)) + 0.5;
      g.strokeStyle = P.color("ink");
      g.lineWidth = 1;
      g.beginPath(); g.moveTo(at, 1); g.lineTo(at, LANE[0] + LANE[1] + 4); g.stroke();
    };
    const timeAt = (event) => { const box = picture.node.getBoundingClientRect(); return ((event.clientX - box.left) / Math.max(1, box.width - 1)) * duration; };
    picture.hover((px) => {
      if (px < 0) return null;
      const time = (px / Math.max(1, picture.node.clientWidth - 1)) * duration;
      const span = list.find((one) => time >= one.start && time <= one.end);
      if (!span) return null;
      const length = P.written(format.ms(span.end - span.start));
      if (span.step === null) return `${NAMES[span.kind]}: ${length}.`;
      const drafts = span.drafts ? `, ${span.accepted} of ${span.drafts} drafts accepted` : "";
      return `Step ${P.count(span.step)}, ${NAMES[span.kind]}: ${span.tokens} ${span.tokens === 1 ? "token" : "tokens"} run, ${span.emitted} emitted${drafts}, ${length}.`;
    });
    picture.node.addEventListener("pointerdown", (event) => { picture.node.setPointerCapture(event.pointerId); seek(timeAt(event)); });
    picture.node.addEventListener("pointermove", (event) => { if (picture.node.hasPointerCapture(event.pointerId)) seek(timeAt(event)); });
    const stop = P.onRepaint(draw);
    const used = new Set(list.map((span) => span.kind));
    const swatch = { queued: "striped", prefill: "prefill", decode: "kv", recomputed: "again", preempted: "striped stopped" };
    const legend = el("div", { class: "legend" }, ...Object.entries(LEGEND).filter(([kind]) => used.has(kind)).map(([kind, label]) => el("span", {}, el("i", ["prefill", "kv"].includes(swatch[kind]) ? { style: `background: var(--pg-${swatch[kind]})` } : { class: swatch[kind] }), label)),
      ...(list.some((span) => span.drafts > span.accepted) ? [el("span", {}, el("i", { class: "struck" }), "drafts rejected")] : []));
    return { node: el("div", {}, picture.node, legend), draw, move: (time) => { head = time; draw(); }, close: stop };
  };
})();
