// The compare page: the bar, the sides with their settings or texts, and below them what came out.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  P.mountCompare = (element, props, watch, trigger, config) => {
    const { presets, sets, groups, letters, sides: [fewest, most] } = config;
    let view = { rev: 0, result: null, running: null, problem: null, saved: [] };
    let draft = null;
    let fieldsKey = "";
    let [prompt, metric, panel, blind] = [0, null, null, false];
    const link = /^#compare\/(\d+)$/.exec(window.location.hash);
    let linked = link && Number(link[1]); // the comparison that the address names
    let asked = false; // waiting for the server's first word
    let over = 0; // the comparison that ended last: an answer that was on its way may take it for running
    const forms = new Map(); // side -> form, while its settings are open

    const bar = el("div", { class: "bar" });
    const progress = el("div", { class: "progress" }, el("i", {}));
    const drawer = el("div", { class: "drawer-panel", hidden: true });
    const problem = el("p", { class: "problem", role: "alert", hidden: true });
    const [start, cols, mid, low] = ["", "cols", "mid", "low"].map((name) => el("div", { class: name }));
    const expect = el("p", { class: "expect" });
    element.append(el("div", { class: "compare" }, bar, progress, drawer, el("div", { class: "wrap" }, problem, start, expect, cols, mid, low)));
    const draw = Object.fromEntries(Object.entries({ bar, start, mid, low, table: el("div"), expect }).map(([name, node]) => [name, P.compare.keyed(node)]));
    const dots = P.compare.dots();

    const send = (name, data = {}) => { asked = name !== "stop" && name !== "export"; trigger(name, data); refresh(); };
    const run = () => send("run", { ...draft, blind });
    const preset = (key) => { if (key) send("preset", { key, blind }); };
    const coupled = () => {
      for (const side of draft.sides) if (side.values.speculation !== "off") side.values["speculation.verification"] = "coupled";
      forms.clear();
      run();
    };

    // The bar

    const toggle = (name) => () => { panel = panel === name ? null : name; refresh(); };
    const opener = (name, text, tip) => el("button", { class: "button", type: "button", "aria-expanded": String(panel === name), onclick: toggle(name), text, "data-tip": tip });
    const busy = () => Boolean(view.running) || asked;
    const drawBar = () => {
      if (!draft) { bar.hidden = true; return; }
      bar.hidden = false;
      const labels = ["prompts", "runs", "sampling"].map((name) => P.compare.labels[name](draft, sets));
      const { running, result } = view;
      draw.bar([labels, draft.preset, blind, panel, running, asked, result && result.id, view.saved.length, draft.sides.length], () => [
        P.compare.presetSelect(presets, draft.preset, (key) => { if (key === "*") { panel = null; send("overview"); } else preset(key); }, busy()),
        el("span", { class: "openers" }, opener("prompts", labels[0]), opener("runs", labels[1]), opener("sampling", labels[2]),
        el("button", { class: "button", type: "button", "aria-pressed": String(blind), onclick: () => { blind = !blind; refresh(); }, text: "Blind", "data-tip": "Names and numbers stay hidden until you have voted for a text." }),
          el("span", { class: "spacer" }),
          running || !view.saved.length ? null : opener("saved", `Saved (${view.saved.length})`),
          running || !result || result.id === null ? null : opener("export", "Export")),
        running ? el("span", { class: "doing", role: "status", text: running.text }) : null,
        busy()
          ? el("button", { class: "button strong", type: "button", disabled: !running, onclick: () => send("stop"), text: "Stop" })
          : el("button", { class: "button strong", type: "button", onclick: run, text: result ? "Run again" : "Run" }),
      ]);
    };

    let panelShown = null;
    const drawPanel = () => {
      const key = draft ? `${panel} ${fieldsKey} ${panel === "saved" ? JSON.stringify(view.saved) : ""}` : null;
      if (key === panelShown) return;
      panelShown = key;
      drawer.hidden = !draft || !panel;
      if (drawer.hidden) return;
      const openSaved = (id) => { panel = null; send("open", { id }); };
      const made = P.compare.panels[panel] ? P.compare.panels[panel](draft, sets, drawBar)
        : panel === "saved" ? P.compare.saved(view.saved, openSaved, (id) => send("remove", { id }))
          : el("div", { class: "choices" }, ...[["json", "Everything as JSON"], ["markdown", "Table as Markdown"]].map(([kind, text]) => el("button", { class: "button", type: "button", onclick: () => send("export", { id: view.result.id, kind }), text })));
      drawer.replaceChildren(made);
    };
    drawer.addEventListener("input", () => { draft.preset = null; drawBar(); });

    // The sides

    const addSide = () => {
      const last = draft.sides[draft.sides.length - 1];
      draft.sides.push({ name: `configuration ${letters[draft.sides.length]}`, values: { ...last.values } });
      draft.preset = null;
      view = { ...view, result: null };
      openForm(draft.sides.length - 1);
    };
    const dropSide = (side) => {
      draft.sides.splice(side, 1);
      draft.preset = null;
      forms.clear();
      view = { ...view, result: null };
      refresh();
    };
    const openForm = (side) => {
      const own = draft.sides[side];
      forms.set(side, P.form({ groups, values: own.values, open: ["Model"], onChange: (values) => { own.values = values; draft.preset = null; drawBar(); } }));
      refresh();
    };
    const column = (side, shown) => {
      const own = draft.sides[side];
      const form = forms.get(side);
      const hidden = view.result && view.result.hidden;
      const letter = shown ? shown.letter : letters[side];
      const name = form
        ? el("input", { class: "name", value: own.name, "aria-label": `Name of ${letter}`, maxlength: "60", oninput: (event) => { own.name = event.target.value; } })
        : el("span", { text: shown ? shown.name : own.name });
      const head = el("h2", {}, hidden ? el("span", { class: "mark hidden-mark" }) : P.compare.mark(side), el("span", { text: letter }), name, el("span", { class: "spacer" }),
        form && draft.sides.length > fewest ? el("button", { class: "quiet", type: "button", onclick: () => dropSide(side), text: "Remove" }) : null,
        hidden || busy() ? null : el("button", { class: "quiet", type: "button", "aria-expanded": String(Boolean(form)), onclick: () => { if (form) { forms.delete(side); refresh(); } else openForm(side); }, text: form ? "Done" : "Settings" }));
      const differs = shown ? shown.differs.map(({ label, value }) => `${label}: ${value}`).join(" · ") : "";
      const output = shown && shown.outputs[prompt];
      const body = form ? form.node
        : shown && shown.error ? el("p", { class: "problem", text: shown.error })
          : output ? [P.compare.output(output), P.compare.figures(output)]
            : el("p", { class: "wait", text: view.running ? "Its text will appear here once it has been warmed up." : "Its text will appear here. Change its settings, then run." });
      return el("section", { class: `col${form ? " editing" : ""}`, "aria-label": `${letter} ${shown ? shown.name : own.name}` }, head, differs ? el("p", { class: "differs", text: differs }) : null, ...[body].flat());
    };
    let colsShown = "";
    const drawCols = () => {
      const { result } = view;
      const key = draft ? JSON.stringify([draft.sides.length, [...forms.keys()], result && result.columns, result && result.hidden, prompt, busy(), fieldsKey]) : "";
      if (key === colsShown) return;
      colsShown = key;
      cols.hidden = !draft;
      if (!draft) return;
      const shown = result ? result.columns : draft.sides.map((_, side) => ({ side }));
      cols.style.setProperty("--sides", String(shown.length));
      cols.replaceChildren(...shown.map((one) => column(one.side, result ? one : null)),
        ...(!busy() && !(result && result.hidden) && draft.sides.length < most ? [el("button", { type: "button", class: "add", onclick: addSide, "aria-label": "Add a configuration", "data-tip": "Add a configuration" }, P.icon("plus"))] : []));
    };

    // What came out

    const drawResults = () => {
      const result = draft ? view.result : null;
      const names = result ? result.columns.map(({ letter }) => letter) : [];
      draw.expect([result && result.expect], () => (result && result.expect ? [el("b", { text: "Expected. " }), result.expect] : []));
      draw.mid([result && [result.prompts, result.agreement, result.bands, result.hidden, result.votes, result.status, result.id], prompt, busy()], () => {
        if (!result) return [];
        return [
          P.compare.promptLine(result, prompt, (to) => { prompt = to; refresh(); }),
          result.bands[prompt] ? P.compare.bands(result.bands[prompt], coupled) : null,
          result.hidden && result.id !== null ? P.compare.votes(result, (choice) => send("vote", { id: result.id, choice })) : null,
        ];
      });
      const chosen = result && result.table.length ? (result.table.find(({ key }) => key === (metric || result.watch)) || result.table[0]) : null;
      draw.low([result && [result.table, result.n, result.protocol, result.machine, result.status], chosen && chosen.key], () => {
        if (!chosen) {
          const nothing = result && { stopped: "Stopped before anything was measured.", failed: "No configuration could be run: each says why." }[result.status];
          return nothing ? [el("p", { class: "said", role: "status", text: nothing })] : [];
        }
        const status = result.status === "stopped" ? "Stopped; what was measured stays. " : "";
        return [
          el("div", { class: "numbers" }, P.compare.table(result, names, chosen.key, (key) => { metric = key; refresh(); }), el("p", { class: "said", text: `${status}${result.protocol} ${result.machine}.` })),
          dots.node,
        ];
      });
      low.classList.toggle("wide", names.length > 2);
      if (chosen) dots.show(chosen, names);
    };

    const refresh = () => {
      draw.start([!draft, !draft && view.saved], () => (draft ? [] : [
        P.compare.start(presets, preset, () => send("own")),
        view.saved.length ? el("section", { class: "start" }, el("h3", { text: "Saved" }), P.compare.saved(view.saved, (id) => send("open", { id }), (id) => send("remove", { id }))) : null,
      ]));
      drawBar();
      drawPanel();
      drawCols();
      drawResults();
      progress.classList.toggle("on", Boolean(view.running));
      progress.firstChild.style.width = `${view.running ? view.running.done * 100 : 0}%`;
      problem.hidden = !view.problem;
      problem.textContent = view.problem ? view.problem.text : "";
    };

    const take = (value) => {
      if (!value || !value.rev || value.rev <= view.rev) return;
      if (linked !== null) { // what the server says first is of no comparison in particular
        const id = linked;
        linked = null;
        if (!value.running) { send("open", { id }); return; }
      }
      const before = view.result;
      view = value;
      asked = false;
      if (value.fields && value.fields_key !== fieldsKey) {
        draft = structuredClone(value.fields);
        blind = Boolean(draft.blind);
        fieldsKey = value.fields_key;
        forms.clear();
        [prompt, metric, panel] = [0, null, null];
      } else if (!value.fields && value.problem) view = { ...view, result: before };
      else if (!value.fields) { draft = null; fieldsKey = ""; forms.clear(); }
      if (value.problem && typeof value.problem.side === "number" && draft) {
        if (!forms.has(value.problem.side)) openForm(value.problem.side);
        forms.get(value.problem.side).blame(value.problem.field);
      }
      if (draft && !view.result && !view.running && fieldsKey && !value.problem) draft.sides.forEach((_, side) => { if (!forms.has(side)) openForm(side); });
      refresh();
      address();
      if (view.following && view.following === over) send("ended", { number: over });
    };

    // The address names the comparison that is shown: a link, the back button and a reload lead to it.
    const address = () => {
      if (P.pages.current !== "compare") return;
      const wanted = draft && view.result && view.result.id !== null ? `#compare/${view.result.id}` : "#compare";
      if (window.location.hash !== wanted) window.history.replaceState(null, "", wanted);
    };
    P.bind(props, watch, take);
    P.stream.on("comparison", ({ number, ended, view: value }) => {
      if (ended) over = number;
      if (number !== view.following) return;
      if (ended) send("ended", { number }); else take(value);
    });
    P.stream.onState((connected) => { if (connected && view.following) send("ended", { number: view.following }); });
    refresh();
    P.pages.onShow((name) => { if (name === "compare") { refresh(); address(); } });
  };
})();
