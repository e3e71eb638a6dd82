// Draws the page from the benchmark's own data. Texts are set as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const measured = data.rows.filter((row) => row.error === null);
  const PROPOSERS = { draft: "Draft model", ngram: "Prompt lookup (n-gram)", suffix: "Suffix lookup", layer_skip: "Layers left out" };
  const WORKLOADS = { chat: "Chat", story: "Story", "story-0.7": "Story, temperature 0.7", "story-1.0": "Story, temperature 1", copy: "Copy" };
  const title = (name) => WORKLOADS[name] || name;

  // Numbers

  const number = (value) => (value === null || value === undefined ? "—" : value.toFixed(2));
  const percent = (value) => (value === null || value === undefined ? "—" : `${Math.round(value * 100)} %`);
  const times = (value) => (value === null || value === undefined ? "—" : `${value.toFixed(2)}×`);
  const milliseconds = (value) => number(value * 1000);
  const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

  // Elements

  function add(parent, tag, text, name) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    parent.append(element);
    return element;
  }

  function table(parent, columns, rows) {
    const box = add(parent, "div", undefined, "scroll");
    const element = add(box, "table");
    const head = add(add(element, "thead"), "tr");
    for (const [label, , kind] of columns) add(head, "th", label, kind).scope = "col";
    const body = add(element, "tbody");
    for (const row of rows) {
      const line = add(body, "tr");
      for (const [, value, kind] of columns) {
        const cell = add(line, "td", value(row), kind);
        if (cell.textContent === "no") cell.classList.add("no");
      }
    }
  }

  // Charts. Speed measured: orange, filled, solid, with the range of the pairs. Formula: grey, hollow, dashed.

  const plots = [];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function legend(parent, parts) {
    const box = add(parent, "div", undefined, "legend");
    for (const [kind, label] of parts) {
      const part = add(box, "span");
      part.innerHTML = {
        accepted: '<svg><path d="M0 6H28" stroke="var(--accepted)" stroke-width="2"/><circle cx="14" cy="6" r="4" fill="var(--accepted)"/></svg>',
        measured: '<svg><path d="M0 6H28" stroke="var(--draft)" stroke-width="2"/><circle cx="14" cy="6" r="4" fill="var(--draft)"/></svg>',
        adaptive: '<svg><path d="M14 0L20 6L14 12L8 6Z" fill="var(--draft)"/></svg>',
        coupled: '<svg><path d="M9.5 1.5H18.5V10.5H9.5Z" fill="none" stroke="var(--draft)" stroke-width="2"/></svg>',
        formula: '<svg><path d="M0 6H28" stroke="var(--formula)" stroke-width="1.5" stroke-dasharray="4 3"/><circle cx="14" cy="6" r="3.5" fill="var(--panel)" stroke="var(--formula)" stroke-width="1.5"/></svg>',
        level: '<svg><path d="M0 6H28" stroke="var(--ink)" stroke-width="1"/></svg>',
        one: '<svg><path d="M0 6H28" stroke="var(--formula)" stroke-width="1.5" stroke-dasharray="4 3"/></svg>',
      }[kind];
      part.append(label);
    }
  }

  function line(kind, points, options = {}) {
    const shape = { measured: "circle", accepted: "circle", adaptive: "diamond", coupled: "square-open", formula: "circle-open" }[kind];
    const paint = { formula: "formula", accepted: "accepted" }[kind] || "draft";
    const joined = kind !== "adaptive" && kind !== "coupled";
    const trace = {
      x: points.map((one) => one.x), y: points.map((one) => one.y), text: points.map((one) => one.text),
      type: "scatter", mode: joined ? "lines+markers" : "markers",
      hovertemplate: "%{text}<extra></extra>", paint,
      line: { width: kind === "formula" ? 1.5 : 2, dash: kind === "formula" ? "4px,3px" : "solid" },
      marker: { symbol: shape, size: kind === "adaptive" ? 11 : 8, line: { width: 1.5 } },
      ...options,
    };
    if (points.some((one) => one.low !== undefined)) {
      trace.error_y = {
        type: "data", symmetric: false, thickness: 1, width: 3,
        array: points.map((one) => one.high - one.y), arrayminus: points.map((one) => one.y - one.low),
      };
    }
    return trace;
  }

  function draw(plot) {
    const ink = colour("ink"), mute = colour("mute"), rule = colour("line");
    const traces = plot.traces.map(({ paint, ...trace }) => ({
      ...trace,
      line: { ...trace.line, color: colour(paint) },
      marker: { ...trace.marker, color: colour(paint), line: { ...(trace.marker || {}).line, color: colour(paint) } },
      ...(trace.error_y ? { error_y: { ...trace.error_y, color: colour(paint) } } : {}),
    }));
    const axis = { gridcolor: rule, linecolor: rule, zeroline: false, fixedrange: true, tickfont: { size: 11, color: mute } };
    const layout = {
      margin: { l: 44, r: 12, t: 8, b: 36 }, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "ui-sans-serif, system-ui, sans-serif", size: 12, color: ink }, hovermode: "closest",
      hoverlabel: { bgcolor: ink, bordercolor: ink, font: { family: "ui-sans-serif, system-ui, sans-serif", color: colour("bg"), size: 12 }, align: "left" },
      xaxis: { ...axis, type: "category", categoryorder: "array", categoryarray: plot.categories, range: [-0.5, plot.categories.length - 0.5], showgrid: false, title: { text: plot.x, font: { size: 11, color: mute }, standoff: 4 } },
      yaxis: { ...axis, range: plot.range, ticksuffix: plot.percent ? " %" : "×", nticks: 5 },
      shapes: plot.level === undefined || plot.level === null ? [] : [{
        type: "line", xref: "paper", x0: 0, x1: 1, y0: plot.level, y1: plot.level, layer: "below",
        line: plot.percent ? { color: colour("formula"), width: 1.5, dash: "4px,3px" } : { color: ink, width: 1 },
      }],
    };
    Plotly.react(plot.element, traces, layout, { displayModeBar: false, responsive: true });
  }

  function panel(parent, heading, note, plot) {
    const box = add(parent, "section", undefined, "panel");
    add(box, "h3", heading);
    add(box, "div", note, "note");
    const element = add(box, "div", undefined, "plot");
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", `${heading}, ${note}: ${plot.traces.flatMap((one) => one.text).join("; ").replaceAll("<br>", ", ")}`);
    plots.push({ ...plot, element });
  }

  const speedupPoint = (x, row) => ({
    x, y: row.speedup, low: row.speedup_min, high: row.speedup_max,
    text: `measured ${times(row.speedup)} (${number(row.speedup_min)}–${number(row.speedup_max)})<br>${many(row.tokens_per_second.length, "pair")}, α ${percent(row.acceptance)}`,
  });
  const expectedPoint = (x, row) => ({
    x, y: row.expected_speedup,
    text: `expected ${times(row.expected_speedup)}<br>${number(row.tokens_per_step_one_alpha)} tokens a step, c ${number(row.draft_cost)}, v ${number(row.verify_cost)}`,
  });
  const speedupRange = (rows) => [0, 1.08 * Math.max(1, ...rows.map((row) => Math.max(row.speedup_max, row.expected_speedup)))];
  const caseName = (row) => [
    `${PROPOSERS[row.proposer]}, K ${row.num_tokens}`, ...(row.verification === "coupled" ? ["coupled"] : []), ...(row.batch_size > 1 ? [`batch ${row.batch_size}`] : []),
  ].join(", ");
  const byK = (a, b) => a.num_tokens - b.num_tokens;
  const SPEEDUP_LEGEND = [["measured", "measured: median and range of the pairs"], ["formula", "expected: E / (K c + v)"], ["level", "no speculation"]];

  function speedupPlot(rows, categories, x, place, range) {
    const numbers = rows.filter((row) => row.num_tokens !== "auto" && row.verification === "rejection");
    const adaptive = rows.filter((row) => row.num_tokens === "auto" && row.verification === "rejection");
    const coupled = rows.filter((row) => row.verification === "coupled");
    const of = (chosen, point) => chosen.map((row) => point(place(row), row));
    const traces = [line("formula", of(numbers, expectedPoint)), line("measured", of(numbers, speedupPoint))];
    if (adaptive.length) {
      traces.push(line("formula", of(adaptive, expectedPoint), { mode: "markers" }), line("adaptive", of(adaptive, speedupPoint)));
    }
    if (coupled.length) traces.push(line("coupled", of(coupled, speedupPoint)));
    return { traces, categories, x, range, level: 1 };
  }

  // What depends on the workload

  function showWorkload(parent, name) {
    parent.replaceChildren();
    plots.filter((plot) => plot.group === parent).forEach((plot) => Plotly.purge(plot.element));
    plots.splice(0, plots.length, ...plots.filter((plot) => plot.group !== parent));
    const workload = data.plan.workloads.find((one) => one.name === name);
    add(parent, "p", `${workload.does[0].toUpperCase()}${workload.does.slice(1)}. ${workload.temperature ? `Temperature ${workload.temperature}` : "Greedy"}, up to ${workload.max_tokens} tokens.`, "note");
    const mine = measured.filter((row) => row.workload === name && row.batch_size === 1);
    const before = plots.length;
    speedupByK(parent, mine);
    acceptanceByPosition(parent, mine.filter((row) => row.verification === "rejection"));
    for (const plot of plots.slice(before)) plot.group = parent;
    add(parent, "h2", "Every case");
    cases(parent, data.rows.filter((row) => row.workload === name));
    plots.slice(before).forEach(draw);
  }

  function speedupByK(parent, rows) {
    add(parent, "h2", "Speed-up by number of drafts");
    if (!rows.length) return void add(parent, "p", "Not measured at batch size 1.", "empty");
    legend(parent, [...SPEEDUP_LEGEND, ["adaptive", "adaptive K"], ...(rows.some((row) => row.verification === "coupled") ? [["coupled", "coupled verification"]] : [])]);
    const ks = [...new Set(rows.map((row) => row.num_tokens))].filter((k) => k !== "auto").sort((a, b) => a - b).map(String);
    const categories = rows.some((row) => row.num_tokens === "auto") ? [...ks, "auto"] : ks;
    const panels = add(parent, "div", undefined, "panels");
    for (const proposer of new Set(rows.map((row) => row.proposer))) {
      const mine = rows.filter((row) => row.proposer === proposer).sort(byK);
      const best = mine.reduce((a, b) => (b.speedup > a.speedup ? b : a));
      const note = `best ${times(best.speedup)} at K ${best.num_tokens}`;
      panel(panels, PROPOSERS[proposer], note, speedupPlot(mine, categories, "drafts at once, K", (row) => String(row.num_tokens), speedupRange(rows)));
    }
  }

  function acceptanceByPosition(parent, rows) {
    const fixedRows = rows.filter((row) => row.num_tokens !== "auto" && row.acceptance !== null);
    add(parent, "h2", "Acceptance by position");
    if (!fixedRows.length) return void add(parent, "p", "No case with a fixed number of drafts made any.", "empty");
    legend(parent, [["accepted", "accepted of those reached: conditional on every draft before it"], ["one", "α, the one number of the formula"]]);
    const panels = add(parent, "div", undefined, "panels");
    const widest = Math.max(...fixedRows.map((row) => row.drafts_reached.length));
    const categories = Array.from({ length: widest }, (_, i) => String(i + 1));
    for (const proposer of new Set(fixedRows.map((row) => row.proposer))) {
      const row = fixedRows.filter((one) => one.proposer === proposer).sort(byK).at(-1);
      const points = row.acceptance_by_position.flatMap((value, i) => (value === null ? [] : [{
        x: String(i + 1), y: 100 * value, text: `draft ${i + 1}: ${percent(value)}<br>${row.drafts_accepted[i]} accepted of ${row.drafts_reached[i]} reached`,
      }]));
      panel(panels, PROPOSERS[proposer], `K ${row.num_tokens}, α ${percent(row.acceptance)}, n = ${row.drafts_reached[0]} steps with drafts`, {
        traces: [line("accepted", points)], categories, x: "position in the draft", range: [0, 105], level: 100 * row.acceptance, percent: true,
      });
    }
  }

  function cases(parent, rows) {
    const same = (row) => (row.same_text ? `${row.same_text.identical} of ${row.same_text.requests}` : "");
    const state = (row) => {
      if (row.error !== null) return `failed: ${row.error}`;
      if (row.num_tokens !== "auto" || !row.speculation) return "";
      return `${row.speculation.state}${row.speculation.reason ? `: ${row.speculation.reason}` : ""}, drafts in ${percent(row.drafting_share)} of the steps`;
    };
    const figure = (value) => (row) => (row.error === null ? value(row) : "");
    table(parent, [
      ["case", caseName, "text fixed"],
      ["measured", figure((row) => times(row.speedup))],
      ["range", figure((row) => `${number(row.speedup_min)}–${number(row.speedup_max)}`)],
      ["expected", figure((row) => times(row.expected_speedup))],
      ["α", figure((row) => percent(row.acceptance))],
      ["of all drafted", figure((row) => percent(row.acceptance_rate))],
      ["tokens a step", figure((row) => number(row.tokens_per_step))],
      ["by position", figure((row) => number(row.tokens_per_step_by_position))],
      ["one α", figure((row) => number(row.tokens_per_step_one_alpha))],
      ["draft ms", figure((row) => milliseconds(row.draft_seconds))],
      ["verify ms", figure((row) => milliseconds(row.verify_seconds))],
      ["plain ms", figure((row) => milliseconds(row.plain_step_seconds))],
      ["c", figure((row) => number(row.draft_cost))],
      ["v", figure((row) => number(row.verify_cost))],
      ["same text", figure(same)],
      ["at the end", state, "text"],
    ], rows);
  }

  // What does not

  function headline(parent) {
    const box = add(parent, "div", undefined, "tiles");
    const tile = (label, row) => {
      const one = add(box, "div", undefined, "tile");
      add(one, "span", label);
      add(one, "b", times(row.speedup));
      add(one, "span", `${PROPOSERS[row.proposer]}, K ${row.num_tokens}${row.batch_size > 1 ? `, batch ${row.batch_size}` : ""}`);
      add(one, "span", `range ${number(row.speedup_min)}–${number(row.speedup_max)}, n = ${row.tokens_per_second.length}`);
    };
    const extreme = (rows, better) => rows.reduce((a, b) => (better(b.speedup, a.speedup) ? b : a));
    for (const { name } of data.plan.workloads) {
      const mine = measured.filter((row) => row.workload === name && row.batch_size === 1);
      if (mine.length) tile(`${title(name)}, best`, extreme(mine, (b, a) => b > a));
    }
    const adaptive = measured.filter((row) => row.num_tokens === "auto");
    if (adaptive.length) {
      const worst = extreme(adaptive, (b, a) => b < a);
      tile(`Adaptive, worst: ${title(worst.workload).toLowerCase()}`, worst);
    }
  }

  function asked(parent) {
    if (!data.reaches.length) return;
    add(parent, "h2", "What is to be reached");
    add(parent, "p", "Set for the bundled models on a CPU; the case that decides is named.", "note");
    const value = (entry, number) => (entry.unit === "state" ? number : entry.unit === "deviation" ? `${(number * 100).toFixed(1)} %` : times(number));
    table(parent, [
      ["reached", (entry) => (entry.reached ? "yes" : "no"), "text"], ["what", (entry) => `${title(entry.workload)}: ${entry.what}`, "text wrap"],
      ["measured", (entry) => value(entry, entry.value)], ["to reach", (entry) => ({ x: "≥ ", deviation: "≤ " }[entry.unit] || "") + value(entry, entry.reach)], ["case", (entry) => entry.case, "text"],
    ], data.reaches);
  }

  function byTemperature(parent) {
    const rows = measured.filter((row) => row.workload.startsWith("story") && row.batch_size === 1);
    const temperatures = [...new Set(rows.map((row) => row.temperature))].sort((a, b) => a - b).map(String);
    if (temperatures.length < 2) return;
    const numbers = rows.filter((row) => row.num_tokens !== "auto");
    const common = [...new Set(numbers.map((row) => row.num_tokens))].sort((a, b) => Math.abs(a - 4) - Math.abs(b - 4))[0];
    const chosen = rows.filter((row) => row.num_tokens === common || (row.num_tokens === "auto" && row.verification === "rejection"));
    add(parent, "h2", "Speed-up by temperature");
    add(parent, "p", `Stories, batch size 1, K = ${common} and adaptive. At temperature 0 the text is greedy.`, "note");
    legend(parent, [...SPEEDUP_LEGEND, ["adaptive", "adaptive K"], ["coupled", `coupled verification, K = ${common}`]]);
    const panels = add(parent, "div", undefined, "panels");
    for (const proposer of new Set(chosen.map((row) => row.proposer))) {
      const mine = chosen.filter((row) => row.proposer === proposer).sort((a, b) => a.temperature - b.temperature);
      const fixedRows = mine.filter((row) => row.num_tokens !== "auto" && row.verification === "rejection");
      const note = `α ${fixedRows.map((row) => percent(row.acceptance)).join(", ")}`;
      panel(panels, PROPOSERS[proposer], note, speedupPlot(mine, temperatures, "temperature", (row) => String(row.temperature), speedupRange(chosen)));
    }
  }

  function byBatchSize(parent) {
    const sizes = [...new Set(measured.map((row) => row.batch_size))].sort((a, b) => a - b).map(String);
    if (sizes.length < 2) return;
    const workload = measured.find((row) => row.batch_size > 1).workload;
    const rows = measured.filter((row) => row.workload === workload && row.verification === "rejection");
    const key = (row) => `${PROPOSERS[row.proposer]}, K ${row.num_tokens}`;
    const large = new Set(rows.filter((row) => row.batch_size > 1).map(key));
    const chosen = rows.filter((row) => large.has(key(row)));
    add(parent, "h2", "Speed-up by batch size");
    add(parent, "p", `${title(workload)}: requests that are submitted together. Verifying drafts costs more where the batch already fills the machine.`, "note");
    legend(parent, SPEEDUP_LEGEND);
    const panels = add(parent, "div", undefined, "panels");
    for (const name of large) {
      const mine = chosen.filter((row) => key(row) === name).sort((a, b) => a.batch_size - b.batch_size);
      const traces = [line("formula", mine.map((row) => expectedPoint(String(row.batch_size), row))), line("measured", mine.map((row) => speedupPoint(String(row.batch_size), row)))];
      panel(panels, name, `v ${mine.map((row) => number(row.verify_cost)).join(", ")}`, { traces, categories: sizes, x: "requests at once", range: speedupRange(chosen), level: 1 });
    }
  }

  function publishedTables(parent) {
    const { formula, ours, leviathan, chen, sources } = data.published;
    add(parent, "h2", "Beside the formula and what others published");
    const side = add(parent, "div", undefined, "side");
    const left = add(side, "div"), right = add(side, "div");
    add(left, "h3", "The formula: (1 − α^(K+1)) / (1 − α) tokens a step, and its speed-up at v = 1");
    table(left, [
      ["K", (row) => String(row.num_tokens)], ["α", (row) => percent(row.acceptance)], ["tokens a step", (row) => number(row.tokens_per_step)],
      ...formula[0].speedups.map(({ draft_cost: c }, i) => [`c = ${c}`, (row) => times(row.speedups[i].speedup)]),
    ], formula);
    if (ours.length) {
      add(left, "h3", "This run: the draft model at the same K, batch size 1");
      table(left, [
        ["workload", (row) => title(row.workload), "text"], ["K", (row) => String(row.num_tokens)], ["α", (row) => percent(row.acceptance)],
        ["tokens a step", (row) => number(row.tokens_per_step)], ["formula", (row) => number(row.tokens_per_step_one_alpha)],
        ["c", (row) => number(row.draft_cost)], ["v", (row) => number(row.verify_cost)],
        ["expected", (row) => times(row.expected_speedup)], ["measured", (row) => times(row.speedup)],
      ], [...ours].sort(byK));
    }
    add(right, "h3", "Measured elsewhere");
    table(right, [
      ["task", (row) => row.task, "text"], ["draft", (row) => row.draft || "4B", "text"], ["T", (row) => (row.temperature === undefined ? "—" : String(row.temperature))],
      ["K", (row) => String(row.num_tokens || 4)], ["α", (row) => percent(row.acceptance)], ["c", (row) => number(row.draft_cost)],
      ["expected", (row) => times(row.expected_speedup)], ["measured", (row) => times(row.measured_speedup || row.speedup)],
    ], [...leviathan, ...chen]);
    const notes = add(parent, "div", undefined, "note");
    for (const source of Object.values(sources)) add(notes, "div", source);
  }

  function definitions(parent) {
    add(parent, "h2", "What the words mean");
    const list = add(parent, "dl");
    for (const [name, text] of Object.entries(data.definitions)) {
      add(list, "dt", name);
      add(list, "dd", text);
    }
  }

  // The page

  const page = document.getElementById("page");
  const { machine, model, versions } = data;
  add(page, "h1", "Speculative decoding, measured");
  add(page, "p", [
    model.name.split("/").at(-1), model.device, model.dtype, machine.processor, many(machine.torch_threads, "thread"), `torch ${versions.torch}`,
    `commit ${versions.commit || "—"}`, data.created.slice(0, 10), `${many(data.plan.repeats, "pair")} a case`,
  ].join(" · "), "note about");
  if (measured.length) headline(page);
  asked(page);
  const chosen = add(page, "section");
  const choose = add(chosen, "div", undefined, "choose");
  add(choose, "span", "Workload");
  const part = add(chosen, "div", undefined, "chosen");
  for (const { name } of data.plan.workloads) {
    const button = add(choose, "button", title(name));
    button.type = "button";
    button.addEventListener("click", () => select(name));
  }
  function select(name) {
    data.plan.workloads.forEach((one, i) => choose.children[i + 1].setAttribute("aria-pressed", String(one.name === name)));
    showWorkload(part, name);
  }
  byTemperature(page);
  byBatchSize(page);
  publishedTables(page);
  definitions(page);
  plots.forEach(draw);
  select(data.plan.workloads[0].name);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(draw));
})();
