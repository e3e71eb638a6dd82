// The Lab page: the list at its left, the view that the address names at its right (#lab/kv, #lab/run/engine,
// #lab/result/…), and what keeps both up to date.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const L = P.lab;
  const POLL_MS = 700;

  P.mountLab = (element, props, watch, trigger, config) => {
    const state = { job: null, results: [], revision: -1, unavailable: {} };
    const made = new Map(); // views that stay: of the theory and of benchmarks
    let [current, path, measured, asking, known] = [null, "", null, false, false];

    const nav = el("nav", { class: "index", "aria-label": "Lab" });
    const choose = el("select", { "aria-label": "Lab", onchange: () => { window.location.hash = `lab/${choose.value}`; } });
    const content = el("div", { class: "content" });
    const port = el("div", { class: "view-port", tabindex: "-1" }, content);
    const actions = {
      run: (benchmark, options) => { asking = true; trigger("run", { benchmark, options }); refresh(); },
      stop: () => trigger("stop", {}),
      remove: (id) => trigger("remove", { id }),
      asking: () => asking,
    };
    const bar = L.jobBar(actions);
    element.append(el("div", { class: "lab" }, nav, el("div", { class: "stage" }, el("div", { class: "chooser" }, choose), port, bar.node)));

    // The list, as a column and, on narrow pages, as a menu.
    const entries = () => {
      const own = state.results.filter((result) => !result.shipped);
      const result = (one) => ({ path: `result/${one.id}`, text: [one.title, one.what].filter(Boolean).join(", "), small: one.error ? "cannot be read" : one.shipped ? [one.machine, L.date(one.created)].filter(Boolean).join(", ") : L.date(one.created, true) });
      return [
        { title: "Theory", items: [...L.views].map(([name, view]) => ({ path: name, text: view.title })) },
        { title: "Run a benchmark", items: config.benchmarks.map((one) => ({ path: `run/${one.name}`, text: one.title, small: state.unavailable[one.name] ? "not on this machine" : "" })) },
        { title: "Results", items: own.map(result), empty: known ? "What you measure will be listed here." : "", offer: { path: "run/samples", text: "Run a quick one" } },
        { title: "Measured elsewhere", items: state.results.filter((one) => one.shipped).map(result) },
      ];
    };
    const list = () => {
      const groups = entries().filter((group) => group.items.length || group.empty);
      const link = (item) => el("a", { href: `#lab/${item.path}`, "aria-current": item.path === path ? "page" : null }, el("span", { text: item.text }), item.small ? el("small", { text: item.small }) : null);
      const focused = nav.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      nav.replaceChildren(...groups.map((group) => el("div", { class: "entries" }, el("h2", { text: group.title }),
        ...(group.items.length ? group.items.map(link) : [el("p", { class: "note", text: group.empty }), link(group.offer)]))));
      choose.replaceChildren(...groups.filter((group) => group.items.length).map((group) => el("optgroup", { label: group.title }, ...group.items.map((item) => el("option", { value: item.path, text: item.small && group.title !== "Run a benchmark" ? `${item.text} (${item.small})` : item.text })))));
      choose.value = path;
      if (focused) { const again = [...nav.querySelectorAll("a")].find((one) => one.getAttribute("href") === focused); if (again) again.focus({ preventScroll: true }); }
    };

    // The view that the address names.
    const view = () => {
      const [kind, name] = path.split("/");
      if (kind === "result") return L.result(decodeURIComponent(name || ""), actions);
      if (!made.has(path)) {
        const benchmark = kind === "run" && config.benchmarks.find((one) => one.name === name);
        if (benchmark) made.set(path, L.benchmark(benchmark, actions));
        else if (L.views.has(path)) made.set(path, L.views.get(path).make(config));
        else { const [first] = L.views.keys(); path = first; return view(); }
      }
      return made.get(path);
    };
    const go = () => {
      const [page, ...rest] = window.location.hash.slice(1).split("/");
      if (page !== "lab") return;
      const wanted = rest.join("/");
      if (current && wanted === path) return;
      if (current && current.leave) current.leave();
      path = wanted;
      current = view();
      content.replaceChildren(current.node);
      port.scrollTop = 0;
      list();
      if (current.update) { if (measured) current.measured(measured); current.update(); }
      else current.show(state);
      const entry = entries().flatMap((group) => group.items).find((item) => item.path === path);
      P.pages.title("lab", entry ? `${entry.text} · Lab` : "Lab");
    };

    // What changes: polled while a benchmark runs and the page is looked at, else asked for when something has happened.
    const looking = () => P.pages.current === "lab" && !document.hidden;
    let [timer, fetching] = [0, false];
    const refresh = async () => {
      window.clearTimeout(timer);
      if (fetching) { timer = window.setTimeout(refresh, POLL_MS); return; }
      fetching = true;
      try {
        const before = state.revision;
        Object.assign(state, await L.fetch("state"));
        known = true;
        list();
        bar.show(state.job);
        if (current && current.show) current.show(state);
        if (before !== state.revision) await learn();
      } catch { /* the top bar says that the connection is lost */ }
      fetching = false;
      if (looking() && state.job && state.job.state === "running") timer = window.setTimeout(refresh, POLL_MS);
    };
    const learn = async () => {
      measured = await L.fetch("measured");
      for (const [name] of L.views) if (made.has(name)) made.get(name).measured(measured);
    };
    let model = null;
    P.host.onChange((host) => {
      const loaded = host.loaded === false ? null : host.caption;
      if (loaded !== model) { model = loaded; if (known) learn().catch(() => {}); }
      if (looking()) refresh();
    });
    document.addEventListener("visibilitychange", () => { if (looking()) refresh(); });
    window.addEventListener("hashchange", go);
    P.pages.onShow((name) => { if (name === "lab") { go(); refresh(); } });

    watch("value", () => {
      const answer = props.value;
      if (!answer) return;
      asking = false;
      if (current && current.refuse) current.refuse(answer.error || "");
      if (!answer.error && path.startsWith("result/")) window.location.hash = "lab";
      refresh();
    });
  };
})();
