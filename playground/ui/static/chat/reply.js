// The reply that is being written. Frames overlap, so a lost one costs nothing: each says at which character its text,
// and at which token its tokens start. The finished reply arrives in the transcript, and this view empties.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const TEXT_MS = 240;

  P.mountReply = (element, props, watch) => {
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

    const clear = () => {
      if (rows.length) before = { text: written, rows };
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

    P.bind(props, watch, (value) => {
      if (!value || value.run === null || value.run === undefined || value.chat !== P.state.chat) { clear(); return; }
      if (value.run !== run) { clear(); run = value.run; seq = -1; root.hidden = false; P.setState({ request: run }); }
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
    });
  };
})();
