// What the formulas say, beside what was measured, and how far apart the two are.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;

  const decodeSteps = (store) => P.roof.steps(store).filter((step) => P.roof.kindOf(step) === "decode").slice(-64);

  // [label, definition, values(store) -> {predicted, measured, write, why}]; `why` says what a missing number waits for.
  const ROWS = [
    ["KV/token", "Predicted: 2 × layers × KV heads × head size × bytes of a number, a draft model's added. Measured: bytes of the KV cache's tensors over the tokens that fit in.", (store) => {
      const { work, block_bytes: block, block_size: size, draft_kv_bytes_per_token: draft } = store.facts;
      if (!size) return { why: "Does not apply: there is no KV cache." };
      return { predicted: work && draft !== null ? work.kv_bytes_per_token + draft : null, measured: block / size, write: format.bytes };
    }],
    ["Decode step", "Predicted: the least time that the measured ceilings allow for the bytes and operations of the step. Measured: the model's forward. Medians of the latest 64 steps in which every request gets one token.", (store) => {
      const steps = decodeSteps(store);
      const { ceilings } = store.facts;
      return {
        predicted: ceilings && P.roof.median(steps.map((step) => P.roof.leastMs(ceilings, step.flops, step.moved_bytes))),
        measured: P.roof.median(steps.map((step) => step.forward_ms)), write: format.ms, n: steps.length,
        why: ceilings ? "No step of the last 30 s was a plain decode." : "The ceilings of this machine have not been measured yet.",
      };
    }],
    ["TTFT", "Time to first token, of the request that is followed. Predicted: the least time for reading its prompt (in brackets: its tokens), less the cached tokens, alone in one step. Measured: from when the engine received it to its first token, waiting included.", (store) => {
      const request = store.requests.get(store.followed) || [...store.requests.values()].filter((one) => one.first_token_ms !== null).at(-1);
      if (!request) return { why: "No request in the last 30 s.", write: format.ms };
      return {
        predicted: P.roof.leastMs(store.facts.ceilings, request.prompt_flops, request.prompt_bytes),
        measured: request.first_token_ms === null ? null : request.first_token_ms - request.queued_ms,
        write: format.ms, label: `TTFT (${P.count(request.prompt_tokens - request.cached_tokens)})`,
        why: store.facts.ceilings ? "It has no token yet." : "The ceilings of this machine have not been measured yet.",
      };
    }],
    ["Tokens/step", "Of steps that verify drafts, over the last 30 s of them. Predicted: (1 − α^(K+1)) / (1 − α) with α the share of drafts accepted of those looked at, which takes every position for alike and is for chains of drafts. Measured: tokens that came out, for one request.", (store) => {
      const { num_verified: n, verify_expected: predicted, verify_tokens: measured } = store.now;
      if (!store.facts.speculation) return { why: "Does not apply: no drafts are made." };
      return { predicted, measured, write: format.number, n, why: store.facts.draft_tree && n ? "The formula is not for drafts that branch." : "No drafts were verified yet." };
    }],
  ];

  P.view("predicted", {
    title: "Predicted and measured",
    tip: "What the formulas say beside what was measured. The error is measured over predicted, less one; from three times on, how many times as much.",
    half: true,
    mount: (view) => {
      const { store } = view;
      const cells = ROWS.map(([label, tip]) => ({
        name: el("th", { scope: "row", text: label, "data-tip": tip, tabindex: "0" }),
        predicted: el("td", { text: "—" }), measured: el("td", { class: "strong", text: "—" }), error: el("td", { text: "—" }),
      }));
      view.body.append(el("table", { class: "predicted" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "offscreen", text: "Quantity" })), ...["predicted", "measured", "error"].map((text) => el("th", { scope: "col", text })))),
        el("tbody", {}, ...cells.map((row) => el("tr", {}, row.name, row.predicted, row.measured, row.error)))));
      const known = (value) => typeof value === "number" && Number.isFinite(value);
      const signed = (error) => { if (error >= 2) return `× ${P.written(format.number(error + 1))}`; const per = Math.round(error * 100); return per === 0 ? "0 %" : `${per > 0 ? "+" : "−"}${P.count(Math.abs(per))} %`; };
      const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
      const text = () => {
        const said = [];
        ROWS.forEach(([label, tip, values], index) => {
          const row = cells[index];
          const { predicted, measured, write, why, n, label: own } = values(store);
          const written = (value) => (known(value) ? P.written(write(value)) : "—");
          const error = known(predicted) && known(measured) && predicted ? signed(measured / predicted - 1) : "—";
          put(row.name, own || label);
          put(row.predicted, written(predicted));
          put(row.measured, written(measured));
          put(row.error, error);
          const missing = !known(predicted) || !known(measured);
          const hover = `${label}. ${tip}${n ? ` n = ${P.count(n)}.` : ""}${missing && why ? ` ${why}` : ""}`;
          if (row.name.dataset.tip !== hover) row.name.dataset.tip = hover;
          said.push(`${own || label}: predicted ${written(predicted)}, measured ${written(measured)}, error ${error}.`);
        });
        view.says(said.join(" "));
      };
      return { text };
    },
  });
})();
