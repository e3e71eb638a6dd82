// The reply that is being written. What there is of it comes with the chat, what follows with the live stream, in frames
// that overlap, so that a lost one costs nothing: each says at which character its text, and at which token its tokens
// start. When it has ended the chat is asked for again: the reply arrives in the transcript, and this view empties.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const TEXT_MS = 240;
  const SILENT_MS = 3000; // a reply that is being written is heard of 12 times a second
  const MOST_ENDED = 64;

  P.mountReply = (element, props, watch, fire) => {
    const text = el("div", { class: "text" });
    const cursor = el("span", { class: "cursor", "aria-hidden": "true" });
    const phase = el("span", { class: "phase" });
    const figures = el("div", { class: "figures" });
    const view = new P.TokenView({ cursor: el("span", { class: "cursor", "aria-hidden": "true" }), label: "The reply being written, token by token" });
    const root = el("div", { class: "message reply live", hidden: true, "aria-busy": "true", "aria-label": "Reply being written" }, P.segments(), text, view.node, el("div", { class: "foot" }, figures));
    element.append(root);
    let run = null;
    let seq = -1;
    let written = "";
    let rows = [];
    let line = "";
    let said = -TEXT_MS;
    let [heard, silence, connected] = [0, 0, true];
    const ended = new Set(); // the latest ones: an answer that was on its way may take such a one for running

    const again = () => { heard = performance.now(); fire("again", { chat: P.state.chat }); };

    const clear = () => {
      if (rows.length) before = { text: written, rows };
      if (run !== null) P.stream.show(null);
      window.clearInterval(silence);
      run = null;
      written = "";
      rows = [];
      view.set(rows);
      line = "";
      said = -TEXT_MS;
      text.replaceChildren();
      text.playgroundBlocks = [];
      root.hidden = true;
    };

    let before = { text: null, rows: [] }; // the reply that was cleared last: the transcript may be drawn before or after
    P.calls.written = () => (rows.length ? { text: written, rows } : before);

    // The cursor stands behind the last character: inside the last paragraph or item, not below it.
    const place = () => {
      let last = text.lastElementChild;
      while (last && /^(UL|OL|BLOCKQUOTE)$/.test(last.tagName) && last.lastElementChild) last = last.lastElementChild;
      (last && /^(P|LI)$/.test(last.tagName) ? last : text).append(cursor);
    };

    const begin = (value) => {
      clear();
      run = value.number;
      seq = -2;
      root.hidden = false;
      P.stream.show(run);
      P.setState({ request: value.run });
      silence = window.setInterval(() => { if (connected && performance.now() - heard > SILENT_MS) again(); }, SILENT_MS / 2);
    };

    const draw = (value) => {
      heard = performance.now();
      if (value.seq <= seq || value.at > written.length) return; // an old frame, or one that a later full frame will mend
      seq = value.seq;
      const grown = written.slice(0, value.at) + value.text;
      if (grown !== written) { written = grown; cursor.remove(); P.markdown(written, text); }
      if (!cursor.isConnected) place();
      if (value.tokens_at <= rows.length) {
        rows = rows.slice(0, value.tokens_at).concat(value.rows);
        view.set(rows, { ended: false });
      }
      const now = JSON.stringify([value.phase, value.figures]);
      if (now !== line && performance.now() - said >= TEXT_MS) { // the words grow with every frame, the figures stay readable
        line = now;
        said = performance.now();
        if (value.tokens) P.setState({ tokens: value.tokens });
        phase.textContent = value.phase || "";
        figures.replaceChildren(...[phase], ...(value.figures || []).map(([label, tip]) => el("span", { text: label, "data-tip": tip })));
      }
      P.scroller.follow();
    };

    // With the chat: all there is, of this reply or of none.
    let answer = null;
    const show = () => {
      if (!answer || answer.number === null || answer.chat !== P.state.chat) { clear(); return; }
      if (answer.number !== run) begin(answer);
      draw(answer);
      if (ended.has(run)) again();
    };
    P.bind(props, watch, (value) => { answer = value; show(); });
    P.onState((_, changed) => { if (changed.includes("chat")) show(); });

    P.stream.onReply((frame) => {
      if (frame.ended) {
        ended.add(frame.number);
        if (ended.size > MOST_ENDED) ended.delete(ended.values().next().value);
      }
      if (frame.number !== run) return;
      draw(frame);
      if (frame.ended) again();
    });

    P.stream.onState((now) => {
      connected = now;
      if (connected && P.state.running) again(); // it may have ended meanwhile, even with the playground itself
    });
  };
})();
