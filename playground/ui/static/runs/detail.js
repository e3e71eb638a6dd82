// One run: its figures, its waterfall, and its replay through the same views that show the running engine.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;
  const SPEEDS = [0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 4];
  const AIM_MS = 14_000; // a replay begins at the speed that lasts about this long
  const SHORTEST_SPAN = 400;
  const WRITING_MS = 1000; // between two looks at a run that is still being written
  const ROUNDING_MS = 0.01; // times have three decimals: a moment at the end of a step is behind it

  const figure = (label, parts, tip) => el("div", { class: "figure", "data-tip": tip, tabindex: "0" }, el("span", { class: "label", text: label }), el("b", { text: parts[0] }), parts[1] ? el("small", { text: parts[1] }) : null);
  const figures = (run) => el("div", { class: "figures" },
    figure("Waiting", format.ms(run.queue_ms), "Queue time, measured: from its arrival until it first took part in a step."),
    figure("Time to first token", format.ms(run.first_token_ms), "TTFT, measured: from its arrival to its first token."),
    figure("Per token", format.ms(run.per_token_ms), "TPOT, measured: time per output token after the first one."),
    figure("Tokens/s", format.number(run.rate), "1 / the time per output token."),
    figure("Whole request", format.ms(run.whole_ms), "End-to-end latency, measured."),
    figure("Prompt", format.count(run.prompt_tokens), "Tokens of the prompt."),
    figure("Cached", format.count(run.cached_tokens), "Tokens of the prompt that were found in the prefix cache."),
    figure("Generated", format.count(run.output_tokens), "Tokens generated."),
    figure("Drafts accepted", run.drafts ? [format.percent(run.accepted / run.drafts)[0], `% of ${P.count(run.drafts)}`] : ["—", ""], "Accepted of the drafted tokens; — where none were drafted."),
    figure("KV blocks, most", format.count(run.blocks), "The most KV blocks that it held at one time."),
    figure("Preempted", format.count(run.preemptions), "How often it had to give its blocks back and compute them again."),
    figure("End", [run.finish, ""], "Why it ended."));

  const banner = (label, settings) => el("div", { class: "recorded", role: "note" },
    el("b", { text: "Recording" }),
    el("span", { text: `from ${label.where}, ${P.runs.when(label.time_ms)}, on ${label.machine}` }),
    label.versions ? el("span", { class: "faint", text: label.versions }) : null,
    el("span", { class: "faint", text: settings.map(([name, value]) => `${name} ${value}`).join(" · ") }));

  // Controls under the waterfall: play, steps, speed, place.
  const controls = (player) => {
    const play = el("button", { class: "button strong play", type: "button", "data-tip": "Space", onclick: () => player.toggle() });
    const step = (by, text, tip) => el("button", { class: "button", type: "button", "aria-label": tip, "data-tip": tip, text, onclick: () => player.step(by) });
    const speed = el("select", { "aria-label": "Speed" }, ...SPEEDS.map((value) => { const option = el("option", { text: `${value}×` }); option.value = String(value); return option; }));
    speed.addEventListener("change", () => { player.speed = Number(speed.value); });
    const place = el("input", { type: "range", min: "0", max: String(player.duration), step: "any", "aria-label": "Place in the recording" });
    place.addEventListener("input", () => { player.pause(); player.seek(Number(place.value)); });
    const clock = el("span", { class: "clock" });
    player.onChange(() => {
      play.textContent = player.playing ? "Pause" : player.time >= player.duration ? "Play again" : "Play";
      place.value = String(player.time);
      place.setAttribute("aria-valuetext", P.written(format.ms(player.time)));
      clock.textContent = `${format.number(player.time)[0]} of ${format.number(player.duration)[0]} ms · step ${P.count(Math.min(player.index, player.frames.length - 1))} of ${P.count(player.frames.length - 1)}`;
    });
    speed.value = String(player.speed);
    return el("div", { class: "controls" }, play, step(-1, "‹", "One step back (left arrow)"), step(1, "›", "One step on (right arrow)"), place, clock, speed);
  };

  const captions = (tour, player) => {
    const items = tour.captions.map((caption) => el("li", {}, el("button", { type: "button", onclick: () => { player.pause(); player.seek(caption.time_ms + ROUNDING_MS); } }, el("span", { class: "at", text: P.written(format.ms(caption.time_ms)) }), el("span", { text: caption.text }))));
    let now = -1;
    player.onChange(() => {
      const latest = tour.captions.reduce((found, caption, index) => (caption.time_ms <= player.time + 0.001 ? index : found), 0);
      if (latest === now) return;
      now = latest;
      items.forEach((item, index) => { if (index === latest) item.setAttribute("aria-current", "step"); else item.removeAttribute("aria-current"); });
    });
    return el("ol", { class: "captions", "aria-label": "What to look at" }, ...items);
  };

  const replay = (root, answer, views) => {
    const store = new P.Store();
    const player = new P.Player(answer.frames, store);
    player.speed = SPEEDS.reduce((best, speed) => (Math.abs(player.duration / speed - AIM_MS) < Math.abs(player.duration / best - AIM_MS) ? speed : best), 1);
    store.preferred = () => answer.request;
    store.span = Math.min(30_000, Math.max(SHORTEST_SPAN, player.duration));
    const fall = P.waterfall(answer.waterfall, player.duration, (time) => { player.pause(); player.seek(time); });
    const others = Object.keys(answer.tokens).map(Number).filter((id) => id !== answer.request);
    const texts = new Map([[answer.request, P.runTokens(answer.tokens[answer.request] || [])]]);
    for (const id of others) texts.set(id, P.runTokens(answer.tokens[id]));
    const reply = (id) => el("section", { class: "spoken" }, el("h4", { text: id === answer.request ? `Reply, request #${id}` : `Beside it, request #${id}` }), texts.get(id).node);
    const panel = P.panel(views, store);
    root.append(
      el("section", { class: "fall", "aria-label": "Waterfall" }, el("h3", { text: "Waterfall", "data-tip": "What this request waited for, and what each step did for it. Click to go there.", tabindex: "0" }), fall.node),
      controls(player),
      ...(answer.tour ? [captions(answer.tour, player)] : []),
      el("div", { class: "stage" },
        el("div", { class: "text" }, el("section", { class: "spoken" }, el("h4", { text: "Prompt" }), el("p", { class: "prompt", text: answer.prompt || "(empty)" })), ...[answer.request, ...others].map(reply),
          el("div", { class: "legend" }, el("span", {}, el("i", { class: "accepted" }), "draft accepted"), el("span", {}, el("i", { class: "bonus" }), "bonus"), el("span", {}, el("i", { class: "rejected" }), "draft rejected"))),
        el("div", { class: "seen" }, panel)));
    player.onChange(() => { fall.move(player.time); for (const text of texts.values()) text.draw(player.time); });
    const keys = (event) => {
      if (event.target.closest("input, select, textarea, button, canvas.map") || event.ctrlKey || event.metaKey || event.altKey || P.pages.current !== "requests") return;
      const act = { " ": () => player.toggle(), ArrowLeft: () => player.step(-1), ArrowRight: () => player.step(1), Home: () => player.seek(0), End: () => player.seek(player.duration) }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    };
    document.addEventListener("keydown", keys);
    player.seek(answer.tour ? 0 : player.duration);
    return { player, close: () => { player.pause(); document.removeEventListener("keydown", keys); fall.close(); if (panel.close) panel.close(); } };
  };

  // Shows the run that the path names; returns {path, player, close}.
  P.runDetail = (root, path, views) => {
    const shown = { path, player: null, closed: false, end: () => {} };
    shown.close = () => { shown.closed = true; shown.end(); root.replaceChildren(); };
    const isTour = path.startsWith("tour/");
    const url = isTour ? `runs/tours/${encodeURIComponent(path.slice(5))}` : `runs/${encodeURIComponent(path)}`;
    const problem = el("p", { class: "problem", role: "alert", hidden: true });
    const say = (text) => { problem.hidden = !text; problem.textContent = text || ""; };
    const heading = el("h2", { text: "…" });
    const tools = el("div", { class: "tools" });
    const head = el("div", { class: "head" }, el("a", { class: "button", href: "#requests", text: "All requests" }), heading, tools);
    const body = el("div", { class: "page-body" }, head, problem);
    root.replaceChildren(body);

    const show = (answer) => {
      if (answer.error || !answer.run) { heading.textContent = "Not found"; say(answer.error || "There is no such run."); return; }
      const { run } = answer;
      heading.textContent = answer.tour ? `Tour: ${answer.tour.title}` : run.prompt || "(empty)";
      body.replaceChildren(head, problem);
      if (answer.writing) {
        body.append(figures(run), el("p", { class: "bare", text: "This request is being served: it can be played when it has ended." }));
        window.setTimeout(load, WRITING_MS);
        return;
      }
      if (!isTour) {
        const remove = P.sureButton({ class: "button", face: () => "Delete", sure: "Click again to delete", act: async () => {
          const done = await P.runs.post(`runs/${run.id}/delete`);
          if (done.error) say(done.error); else window.location.hash = "requests";
        } });
        if (answer.frames) tools.append(el("a", { class: "button", href: P.runs.link(`runs/${run.id}/export`), download: "", text: "Export", "data-tip": "This run as one file, which opens in any installation, without the model or a GPU." }));
        tools.append(remove);
      }
      if (answer.label) body.append(banner(answer.label, answer.settings));
      body.append(figures(run));
      if (!answer.frames) {
        say(answer.problem);
        if (!answer.problem) body.append(el("p", { class: "bare", text: "The raw events of this run are not saved (any more), so that it cannot be played: these figures are all there is." }));
        return;
      }
      const played = replay(body, answer, views);
      shown.player = played.player;
      shown.end = played.close;
    };
    const load = async () => {
      if (shown.closed) return;
      const answer = await P.runs.get(url);
      if (!shown.closed) show(answer);
    };
    load();
    return shown;
  };
})();
