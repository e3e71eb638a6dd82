// A reply token by token: which tokens were drafts, how probable they were, when they came. The tokens are drawn once and
// recoloured by a class of the page; what is drawn comes from rows as in playground/telemetry/token_trace.py.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;
  const STORED = "inference-playground.view";
  const [ID, TEXT, ORIGIN, STEP, TIME, LOGPROB, REJECTED, TOP] = [0, 1, 2, 3, 4, 5, 6, 7];
  const SLOW = 3; // times the median gap
  const SURE = 0.95; // such a probability has no underline
  const FULL_NATS = 5; // -log p of the thickest one: p = 0.7 %
  const [THINNEST_PX, THICKEST_PX] = [1, 6];
  const LEGEND_MS = 240;
  const KINDS = [
    ["text", "Text", "The reply as it reads, with its Markdown."],
    ["speculation", "Speculation", "Which tokens were drafts that the model accepted, and which drafts it rejected."],
    ["confidence", "Confidence", "How probable each token was to the model, and what it would have said instead. What is written while this view is chosen has its probabilities recorded."],
    ["timing", "Timing", "When each token came: the gap before it."],
  ];

  // ---- which view the page shows ----
  const listeners = [];
  const stored = () => { try { return window.localStorage.getItem(STORED); } catch { return null; } };
  const views = P.views = {
    now: "text",
    onChange: (listener) => { listeners.push(listener); listener(views.now); },
    show: (kind) => {
      views.now = KINDS.some(([name]) => name === kind) ? kind : "text";
      document.documentElement.dataset.view = views.now;
      try { window.localStorage.setItem(STORED, views.now); } catch { /* private mode: forgotten on reload */ }
      for (const button of document.querySelectorAll("#page .segments button")) button.setAttribute("aria-pressed", String(button.dataset.view === views.now));
      for (const node of document.querySelectorAll("#page .by-token")) node.playgroundView.draw();
      for (const listener of listeners) listener(views.now);
      P.scroller.follow();
    },
    at: (number) => { if (KINDS[number]) views.show(KINDS[number][0]); },
  };
  views.show(stored());

  P.segments = () => el("div", { class: "segments", role: "group", "aria-label": "How replies are shown" }, ...KINDS.map(([kind, label, tip], i) =>
    el("button", { type: "button", text: label, "data-view": kind, "data-tip": `${tip} Key: ${i + 1}`, "aria-pressed": String(views.now === kind), onclick: () => views.show(kind) })));

  // ---- words about tokens ----
  const visible = (text) => (text.trim() ? text.trim() : text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅");
  const quoted = (text) => `“${text.replace(/\n/g, "↵").replace(/\t/g, "⇥")}”`;
  const probability = (logprob) => P.written(format.percent(Math.exp(logprob)));
  const ORIGINS = {
    accepted: "Accepted: a draft that the model would have written itself.",
    bonus: "Bonus: all drafts were accepted, and the model's own next token came on top in the same step.",
    corrected: "The model's own token, in place of the draft that it rejected.",
    target: "The model's own token: no drafts in this step.",
  };
  const drafted = (row) => row[ORIGIN] !== null && row[ORIGIN] !== "target";

  const median = (values) => { if (!values.length) return null; const sorted = [...values].sort((a, b) => a - b); const half = sorted.length >> 1; return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2; };
  // ms between the step of a token and the step before it; null within a step, at the beginning, and where it is not known.
  const gapBefore = (rows, i) => {
    if (!i || rows[i][TIME] === null || rows[i - 1][TIME] === null || rows[i][STEP] === rows[i - 1][STEP]) return null;
    const gap = rows[i][TIME] - rows[i - 1][TIME];
    return gap > 0 ? gap : null; // a continued reply has a clock of its own
  };

  const TIPS = {
    speculation: (rows, i) => (rows[i][ORIGIN] === null ? "Where this token came from was not recorded." : ORIGINS[rows[i][ORIGIN]]),
    confidence: (rows, i) => {
      const row = rows[i];
      if (row[LOGPROB] === null) return "Probability: — (it was not asked for)";
      const rivals = row[TOP].map(([text, logprob]) => `${probability(logprob)}  ${quoted(text)}`);
      return [`Probability ${probability(row[LOGPROB])}, measured: log-probability ${P.written(format.number(row[LOGPROB])).replace("-", "−")}. The most probable in its place:`, ...rivals].join("\n");
    },
    timing: (rows, i, typical) => {
      const gap = gapBefore(rows, i);
      if (gap !== null) return `${P.written(format.ms(gap))} after the step before it${typical && gap > SLOW * typical ? `: more than ${SLOW} times the median of ${P.written(format.ms(typical))}` : ""}`;
      if (i && rows[i][STEP] !== null && rows[i][STEP] === rows[i - 1][STEP]) return "Came with the token before it, in the same step.";
      return rows[i][TIME] === null ? "When it came was not recorded." : i ? "The reply was continued here." : `First token, ${P.written(format.ms(rows[i][TIME]))} after the request was sent.`;
    },
  };
  const where = (row) => `Token ${row[ID]} ${quoted(row[TEXT])}${row[STEP] === null ? "" : `, step ${P.written(format.count(row[STEP]))}`}`;

  const mark = (name, text, tip) => el("span", { class: `key ${name}`, text, "data-tip": tip });
  const LEGENDS = {
    speculation: (rows, view) => {
      if (view.plain && !rows.some(drafted)) return [el("span", { text: view.plain })];
      return [
        mark("accepted", "accepted", ORIGINS.accepted), mark("bonus", "bonus", ORIGINS.bonus),
        el("s", { class: "key ghost", text: "rejected", "data-tip": "The first draft that the model did not accept. Those behind it were dropped unseen." }),
        mark("target", "plain: target alone", "The model's own token: without drafts, or in place of a rejected one."),
        el("span", { class: "key", "data-tip": "Here a step begins that verified drafts: one run of the model over all of them." }, el("i", { class: "tick" }), "verify step"),
      ];
    },
    confidence: (rows) => {
      if (!rows.some((row) => row[LOGPROB] !== null)) return [el("span", { text: "— Probabilities were not asked for when this was written; they are for replies that begin while this view is chosen." })];
      return [...[0.9, 0.5, 0.1, 0.01].map((p) => { const key = mark("unsure", P.written(format.percent(p)), `A token whose probability was ${P.written(format.percent(p))}: the less probable, the thicker the line.`); key.style.setProperty("--u", `${thickness(Math.log(p))}px`); return key; }), el("span", { text: "probability of the token; its rivals on hover" })];
    },
    timing: (rows, view) => {
      if (!view.typical) return [el("span", { text: "— The gaps appear with the second step." })];
      const slow = rows.filter((_, i) => gapBefore(rows, i) > SLOW * view.typical).length;
      return [mark("gap", "gap before the token", "The darker the edge, the longer the gap. Tokens without an edge came in the same step as the one before."), mark("slow", `over ${P.written(format.ms(SLOW * view.typical))}`, `Gaps of more than ${SLOW} times the median.`),
        el("span", { text: `median ${P.written(format.ms(view.typical))}, n = ${P.written(format.count(view.gaps))}, ${slow} marked` })];
    },
  };
  const thickness = (logprob) => (logprob > Math.log(SURE) ? 0 : THINNEST_PX + Math.min(1, -logprob / FULL_NATS) * (THICKEST_PX - THINNEST_PX));

  // ---- the view of one reply ----
  P.TokenView = class {
    // `plain`: why a reply has no drafts. `missing`: what to say where there are no tokens.
    constructor({ plain = null, missing = null, cursor = null, label = "The reply, token by token" } = {}) {
      this.plain = plain;
      this.missing = missing;
      this.cursor = cursor;
      this.rows = [];
      this.drawn = [];
      this.spans = [];
      this.saidAt = -LEGEND_MS;
      this.text = el("div", { class: "token-text", role: "group", "aria-label": label });
      this.legend = el("div", { class: "token-legend" });
      this.node = el("div", { class: "by-token" }, this.text, this.legend);
      this.node.playgroundView = this;
      for (const kind of ["pointerover", "focusin"]) this.text.addEventListener(kind, (event) => this.explain(event.target));
      this.text.addEventListener("keydown", (event) => this.walk(event));
    }

    set(rows, { ended = true } = {}) {
      this.rows = rows;
      this.ended = ended;
      this.draw();
    }

    // Only where it is looked at, and only what is new: tokens that were drawn stay the same nodes.
    draw() {
      if (views.now === "text") return;
      let same = 0;
      while (same < this.drawn.length && same < this.rows.length && (this.drawn[same] === this.rows[same] || JSON.stringify(this.drawn[same]) === JSON.stringify(this.rows[same]))) same += 1;
      for (const nodes of this.spans.splice(same)) for (const node of nodes) node.remove();
      for (let i = same; i < this.rows.length; i += 1) {
        const nodes = this.token(i);
        this.spans.push(nodes);
        this.text.append(...nodes);
      }
      this.drawn = this.rows.slice();
      if (this.cursor) this.text.append(this.cursor);
      this.node.classList.toggle("none", !this.rows.length && !this.cursor);
      if (!this.text.querySelector('[tabindex="0"]')) { const first = this.text.querySelector(".t"); if (first) first.tabIndex = 0; }
      const now = performance.now();
      if (!this.ended && now - this.saidAt < LEGEND_MS && this.said === views.now) return;
      [this.saidAt, this.said] = [now, views.now];
      const gaps = this.rows.map((_, i) => gapBefore(this.rows, i)).filter((gap) => gap !== null);
      [this.typical, this.gaps] = [median(gaps), gaps.length];
      this.spans.forEach((nodes, i) => this.colour(nodes.at(-1), i));
      if (!this.rows.length) this.legend.replaceChildren(...(this.missing ? [el("span", { text: this.missing })] : []));
      else this.legend.replaceChildren(...LEGENDS[views.now](this.rows, this));
    }

    token(i) {
      const row = this.rows[i];
      const nodes = [];
      if (drafted(row) && (!i || this.rows[i - 1][STEP] !== row[STEP])) nodes.push(el("i", { class: "tick", "aria-hidden": "true" }));
      if (row[REJECTED].length) {
        const ghost = el("s", { class: "ghost", text: visible(row[REJECTED][0]) });
        ghost.playgroundPlace = i;
        nodes.push(ghost);
      }
      const space = row[TEXT].match(/^[^\S\n]*(?=\S)/);
      if (space && space[0]) nodes.push(document.createTextNode(space[0])); // so that a tint begins with the word
      const span = el("span", { class: `t ${row[ORIGIN] || "unknown"}`, text: row[TEXT].slice(space ? space[0].length : 0), tabindex: "-1" });
      span.playgroundPlace = i;
      nodes.push(span);
      return nodes;
    }

    colour(span, i) {
      const logprob = this.rows[i][LOGPROB];
      const gap = gapBefore(this.rows, i);
      const line = logprob === null ? 0 : thickness(logprob);
      span.classList.toggle("unsure", line > 0);
      span.style.setProperty("--u", `${line.toFixed(1)}px`);
      span.classList.toggle("gap", gap !== null);
      if (gap === null) return;
      const slow = gap > SLOW * this.typical;
      span.classList.toggle("slow", slow);
      span.style.setProperty("--g", `${Math.round(20 + 80 * Math.min(1, gap / (SLOW * this.typical)))}%`);
      if (slow) span.dataset.gap = P.written(format.ms(gap));
    }

    // The hover text is made when it is asked for.
    explain(target) {
      const node = target.closest && target.closest(".t, .ghost");
      if (!node || node.playgroundPlace === undefined || views.now === "text") return;
      const i = node.playgroundPlace;
      const row = this.rows[i];
      if (node.classList.contains("ghost")) {
        const [refused, ...dropped] = row[REJECTED];
        node.dataset.tip = [`Rejected: the draft said ${quoted(refused)}, the model ${quoted(row[TEXT])}.`, ...(dropped.length ? [`Dropped behind it: ${dropped.map(quoted).join(" ")}`] : [])].join("\n");
      } else node.dataset.tip = `${TIPS[views.now](this.rows, i, this.typical)}\n${where(row)}`;
    }

    // The arrow keys go from token to token: one stop for the Tab key.
    walk(event) {
      const from = event.target.playgroundPlace;
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
      if (from === undefined || !step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const to = this.spans[Math.max(0, Math.min(this.spans.length - 1, from + step))].at(-1);
      event.target.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    }
  };

  // ---- where finished replies have their tokens from ----
  // The reply that was written last in this tab is known already: no trip to the server, and nothing flickers.
  const latest = { text: null, rows: null };
  P.calls.written = () => ({ text: null, rows: [] }); // until the live reply answers
  const known = (text) => {
    const live = P.calls.written();
    if (live.rows.length && live.text === text && live.rows.map((row) => row[TEXT]).join("") === text) Object.assign(latest, live);
    return latest.text === text ? latest.rows : null;
  };

  const seen = new IntersectionObserver((entries) => { for (const entry of entries) if (entry.isIntersecting && views.now !== "text") load(entry.target.playgroundView); });
  const load = async (view) => {
    if (view.message === undefined) return;
    const id = view.message;
    view.message = undefined;
    seen.unobserve(view.node);
    try {
      const answer = await fetch(new URL(`chats/tokens/${id}`, document.baseURI));
      view.set(answer.ok ? await answer.json() : []);
    } catch { view.message = id; seen.observe(view.node); } // the connection is gone: tried again when it is looked at
  };
  // The tokens of a stored reply: those of the latest run, or fetched when they are looked at.
  P.loadRows = (view, message) => {
    const rows = known(message.text) || (message.tokens ? null : []);
    if (rows) { view.set(rows); return; }
    view.message = message.id;
    seen.observe(view.node);
  };
  P.views.onChange((kind) => {
    if (kind === "text") return;
    for (const node of document.querySelectorAll("#page .by-token")) { const view = node.playgroundView; if (view.message !== undefined) { seen.unobserve(node); seen.observe(node); } }
  });
})();
