// How fast tokens come: all requests together, the gaps that one of them sees, and how many share a step.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;

  P.view("throughput", {
    title: "Tokens per second",
    tip: "Tokens generated for all requests together, over the last 2 s of steps, measured. Nothing is drawn while the engine rests.",
    half: true,
    mount: (view) => {
      const { store } = view;
      const rate = P.chart({
        store, label: "Tokens per second", height: 92, ticks: 2, least: 10,
        series: [{ value: (sample) => sample.tokens_per_second, color: "kv" }],
        tip: (sample) => `${P.ago(store, sample.time_ms)}: ${P.written(format.rate(sample.tokens_per_second))} generated, ${P.written(format.rate(sample.prompt_tokens_per_second))} of prompts.`,
      });
      const gaps = P.chart({
        store, label: "Inter-token latency", height: 58, ticks: 1, least: 1,
        series: [{ value: (sample) => sample.gap_p95_ms, color: "other", dash: [3, 2], thin: true }, { value: (sample) => sample.gap_p50_ms, color: "kv" }],
        tip: (sample) => `${P.ago(store, sample.time_ms)}: p50 ${P.written(format.ms(sample.gap_p50_ms))}, p95 ${P.written(format.ms(sample.gap_p95_ms))}, n = ${P.count(sample.num_gaps)}.`,
      });
      const batch = P.chart({
        store, label: "Batch size", height: 40, ticks: 1, least: 1, whole: true,
        series: [{ value: (sample) => sample.running, color: "prefill", steps: true }],
        tip: (sample) => `${P.ago(store, sample.time_ms)}: ${sample.running} running, ${sample.waiting} waiting.`,
      });
      const gapNote = el("span", { class: "note" });
      const batchNote = el("span", { class: "note batch" });
      const named = (name, tip, note) => el("div", { class: "below" }, el("span", { text: name, "data-tip": tip, tabindex: "0" }), note);
      view.body.append(rate.node,
        named("Between tokens, ms", "Inter-token latency (ITL), measured: between one step that gave a request tokens and its next one. Line: half were shorter (p50); dashed: 95 % were (p95). Over the last 5 s.", gapNote), gaps.node,
        named("Batch size", "Requests that take part in the steps.", batchNote), batch.node);

      const text = () => {
        const now = store.now;
        view.note(P.spanText(store.span));
        gapNote.textContent = now.num_gaps ? `p50 ${format.number(now.gap_p50_ms)[0]} · p95 ${format.number(now.gap_p95_ms)[0]}` : "—";
        batchNote.textContent = format.count(now.running)[0];
        const words = `${P.written(format.rate(now.tokens_per_second))}; time between tokens p50 ${P.written(format.ms(now.gap_p50_ms))}, p95 ${P.written(format.ms(now.gap_p95_ms))}; batch size ${now.running}.`;
        view.says(words);
        rate.says(`Tokens per second over 30 seconds, now ${P.written(format.rate(now.tokens_per_second))}.`);
        gaps.says(`Inter-token latency over 30 seconds, now p50 ${P.written(format.ms(now.gap_p50_ms))}, p95 ${P.written(format.ms(now.gap_p95_ms))}.`);
        batch.says(`Batch size over 30 seconds, now ${now.running}.`);
      };
      return { draw: () => { rate.draw(); gaps.draw(); batch.draw(); }, text, slow: true };
    },
  });
})();
