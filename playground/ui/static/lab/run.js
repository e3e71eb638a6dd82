// One benchmark: what it measures, its options, Run; and the bar that follows the one that runs.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const L = P.lab;

  const clock = (seconds) => { const whole = Math.floor(seconds); return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`; };
  const ENDS = { done: "Done", stopped: "Stopped, nothing was kept", failed: "Failed" };
  L.clock = clock;

  L.benchmark = (one, actions) => {
    const form = P.form({ groups: one.form, open: one.form.map((group) => group.title) });
    const problem = el("p", { class: "problem", role: "alert", hidden: true });
    const button = el("button", { class: "button strong", type: "submit", text: "Run" });
    const why = el("p", { class: "notice-box" });
    const before = el("div", { class: "before" });
    const node = el("article", { class: "benchmark" },
      el("header", {}, el("h2", { text: one.title }), el("p", { class: "note", text: one.what })),
      why,
      el("form", { class: "ask", onsubmit: (event) => { event.preventDefault(); problem.hidden = true; actions.run(one.name, form.values()); } }, form.node, el("div", { class: "actions" }, button, el("span", { class: "note", text: `Full: ${one.takes}. The chat's engine stands still meanwhile; messages wait.` }))),
      problem, before);
    return {
      node,
      refuse: (text) => { problem.textContent = text; problem.hidden = !text; },
      show: (state) => {
        const reason = state.unavailable[one.name];
        why.hidden = !reason;
        why.textContent = reason || "";
        const busy = Boolean(state.job && state.job.state === "running");
        button.disabled = Boolean(reason) || busy || actions.asking();
        button.textContent = actions.asking() ? "Starting" : busy ? (state.job.benchmark === one.name ? "Running" : "Another one runs") : "Run";
        node.querySelector("form").hidden = Boolean(reason);
        const mine = state.results.filter((result) => !result.error && L.kinds(one.name).includes(result.kind));
        before.replaceChildren(el("h3", { text: "Measured before" }), ...(mine.length ? [el("ul", { class: "plain" }, ...mine.map(L.resultLink))] : [el("p", { class: "note", text: "Nothing yet. What this benchmark measures will be listed here, with the machine, the versions and the date." })]));
      },
    };
  };
  L.kinds = (name) => (name === "kernels" ? ["gpu"] : [name]);

  L.resultLink = (result) => el("li", {}, el("a", { href: `#lab/result/${result.id}` }, el("span", { text: [result.title, result.what].filter(Boolean).join(", ") || result.id }), el("small", { text: result.shipped ? `measured elsewhere: ${[result.machine, L.date(result.created)].filter(Boolean).join(", ")}` : [L.date(result.created, true), result.machine].filter(Boolean).join(" · ") })));
  L.date = (iso, time = false) => {
    const date = new Date(iso);
    if (Number.isNaN(date.getTime())) return "";
    const day = date.toLocaleDateString("en-CA");
    return time ? `${day} ${date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" })}` : day;
  };

  // The bar over every view of the Lab while a benchmark runs, and after its end until it is put away.
  L.jobBar = (actions) => {
    const title = el("b");
    const time = el("span", { class: "time" });
    const line = el("span", { class: "line" });
    const said = el("span", { class: "offscreen", role: "status" });
    const bar = el("progress", { max: 1, "aria-label": "Cases behind it" });
    const stop = el("button", { class: "button", type: "button", text: "Stop", onclick: actions.stop });
    const open = el("a", { class: "button", text: "Open the result" });
    const away = el("button", { class: "tool", type: "button", "aria-label": "Put this away", onclick: () => { put = shown; node.hidden = true; } }, P.icon("close"));
    const lines = el("ol", { class: "lines" });
    const log = el("details", { class: "folded" }, el("summary", { text: "What it says" }), lines);
    const node = el("section", { class: "job", "aria-label": "Benchmark", hidden: true }, el("div", { class: "across" }, title, time, line, el("span", { class: "spacer" }), bar, open, stop, away), log, said);
    let [put, shown] = ["", ""];
    return {
      node,
      show: (job) => {
        shown = job ? `${job.benchmark} ${job.state} ${job.result} ${job.seconds}` : "";
        if (!job || (job.state !== "running" && put === shown)) { node.hidden = true; return; }
        const running = job.state === "running";
        node.hidden = false;
        node.classList.toggle("failed", Boolean(job.error));
        title.textContent = `${job.title}, ${job.what}`;
        time.textContent = clock(job.seconds);
        const last = job.lines.at(-1) || "starting";
        line.textContent = running ? last : [ENDS[job.state], job.error].filter(Boolean).join(": ");
        const words = running ? `${job.title} runs` : `${job.title}: ${line.textContent}`;
        if (said.textContent !== words) said.textContent = words;
        bar.hidden = !running || job.done === null;
        bar.value = job.done === null ? 0 : job.done;
        stop.hidden = !running;
        away.hidden = running;
        open.hidden = !job.result;
        if (job.result) open.setAttribute("href", `#lab/result/${job.result}`);
        log.hidden = !job.lines.length;
        lines.replaceChildren(...job.lines.map((text) => el("li", { text })));
      },
    };
  };
})();
