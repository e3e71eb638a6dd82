// The list of all runs: guided tours, percentiles, search and filters, the table itself, what is stored.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;
  const ROWS = 50;
  const number = (parts) => { const [value, unit] = parts; return el("span", {}, value, unit ? el("small", { text: unit }) : null); };
  const share = (part, whole) => (whole ? number(format.percent(part / whole)) : "—");

  // [sort key, label, what it is, cell, class]
  const COLUMNS = [
    ["created_ms", "Time", "When the request came.", (run) => el("time", { text: P.runs.when(run.time_ms).slice(5) }), "time"],
    ["chat", "Chat", "The saved chat that it belongs to, or where it came from.", (run) => run.title || ({ imported: "imported", comparison: "comparison" }[run.origin] || "—"), "chat minor"],
    ["prompt", "Prompt", "How the prompt begins.", (run) => el("a", { href: `#requests/${run.id}`, text: run.prompt || "(empty)" }), "prompt"],
    ["model", "Configuration", "The model, and the first letters of the configuration's hash: the same for runs with the same switches.", (run) => el("span", {}, `${run.model} `, el("small", { text: run.config })), "model minor"],
    ["num_output_tokens", "Tokens", "Tokens of the prompt, then tokens generated.", (run) => `${format.count(run.prompt_tokens)[0]} + ${format.count(run.output_tokens)[0]}`, "num"],
    ["time_to_first_token", "First token", "Time to first token (TTFT), measured from its arrival.", (run) => number(format.ms(run.first_token_ms)), "num"],
    ["time_per_output_token", "Per token", "Time per output token (TPOT) after the first one, measured.", (run) => number(format.ms(run.per_token_ms)), "num minor"],
    ["", "Tokens/s", "1 / the time per output token.", (run) => format.number(run.rate)[0], "num minor"],
    ["acceptance", "Accepted", "Accepted of the drafted tokens; — where none were drafted.", (run) => share(run.accepted, run.drafts), "num minor"],
    ["num_cached_tokens", "Cached", "Tokens of the prompt that were found in the prefix cache.", (run) => format.count(run.cached_tokens)[0], "num minor"],
    ["kv_blocks_peak", "KV blocks", "The most KV blocks that it held at one time.", (run) => format.count(run.blocks)[0], "num minor"],
    ["finish", "End", "Why it ended: at its length limit, by itself, or stopped.", (run) => el("span", { class: `end ${run.finish === "error" ? "bad" : ""}`, text: run.finish }), "finish"],
  ];

  P.runTable = (root) => {
    const wish = { search: "", origin: "", finish: "", config: "", sort: "created_ms", order: "down", page: 0 };
    let latest = 0;
    const problem = el("p", { class: "problem", role: "alert", hidden: true });
    const say = (text) => { problem.hidden = !text; problem.textContent = text || ""; };

    const tours = el("div", { class: "tours" });
    P.runs.get("runs/tours").then((found) => {
      if (!Array.isArray(found) || !found.length) return;
      tours.append(el("h2", { text: "Guided tours", "data-tip": "Recorded runs of the bundled models on the real engine, with captions.", tabindex: "0" }),
        el("div", { class: "cards" }, ...found.map((tour) => el("a", { class: "button", href: `#requests/tour/${tour.name}`, "data-tip": tour.text, text: tour.title }))));
    });

    const search = el("input", { type: "search", placeholder: "Search prompts, chats, models", "aria-label": "Search requests" });
    const choice = (name, label, options) => {
      const select = el("select", { "aria-label": label, onchange: () => { wish[name] = select.value; wish.page = 0; refresh(); } }, ...options.map(([value, text]) => { const option = el("option", { text }); option.value = value; return option; }));
      return select;
    };
    const origin = choice("origin", "Where it ran", [["", "From anywhere"], ["here", "chats and API"], ["comparison", "comparisons"], ["imported", "imported files"]]);
    const finish = choice("finish", "How it ended", [["", "Any end"], ["stop", "stopped by itself"], ["length", "length"], ["abort", "stopped"], ["error", "error"], ["unfinished", "not ended"]]);
    const configs = choice("config", "Configuration", [["", "Any configuration"]]);
    const file = el("input", { type: "file", class: "offscreen", accept: ".zst", tabindex: "-1", "aria-label": "File of a run" });
    const bring = el("button", { class: "button", type: "button", text: "Import a run", "data-tip": "Open a file that was exported here or in another installation.", onclick: () => file.click() });
    const tools = el("div", { class: "filters" }, search, origin, finish, configs, el("span", { class: "spacer" }), bring, file);

    const heads = COLUMNS.map(([key, label, tip, , name]) => {
      const sort = () => { if (wish.sort === key) wish.order = wish.order === "down" ? "up" : "down"; else { wish.sort = key; wish.order = ["chat", "prompt", "model", "finish"].includes(key) ? "up" : "down"; } wish.page = 0; refresh(); };
      const button = key ? el("button", { type: "button", text: label, "data-tip": tip, onclick: sort }) : el("span", { text: label, "data-tip": tip, tabindex: "0" });
      return el("th", { scope: "col", class: name }, button);
    });
    const body = el("tbody");
    const table = el("table", { class: "list", "aria-label": "Requests" }, el("thead", {}, el("tr", {}, ...heads)), body);
    const empty = el("div", { class: "empty", hidden: true });
    const back = el("button", { class: "button", type: "button", text: "Newer", onclick: () => { wish.page -= 1; refresh(); } });
    const on = el("button", { class: "button", type: "button", text: "Older", onclick: () => { wish.page += 1; refresh(); } });
    const place = el("span", { class: "note" });
    const paging = el("div", { class: "paging" }, place, back, on);

    const spread = el("tbody");
    const percentiles = el("table", { class: "percentiles", "aria-label": "Percentiles of latencies" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Latency" }), ...["p50", "p90", "p95", "p99", "max"].map((text) => el("th", { scope: "col", class: "num", text })),
        el("th", { scope: "col", class: "num" }, el("span", { text: "n", tabindex: "0", "data-tip": "Counted are requests of chats and of the API here. Comparisons have tables of their own, and imported runs are of other machines." })))), spread);
    const storage = el("div", { class: "storage" });
    root.append(el("div", { class: "page-body" }, tours, el("div", { class: "summary" }, percentiles, storage), tools, problem, table, empty, paging));

    const clear = P.sureButton({ class: "quiet", hidden: true, face: () => "Clear raw events", sure: "Click again to clear them all", act: async () => {
      say((await P.runs.post("runs/clear")).error);
      refresh();
    } });
    const stores = el("div");
    storage.append(stores, clear);
    const showStorage = (stored) => {
      const limit = el("select", { "aria-label": "Limit of raw events" }, ...stored.limits.map((bytes) => el("option", { value: String(bytes), text: P.written(format.bytes(bytes)) })));
      limit.value = String(stored.limit_bytes);
      limit.addEventListener("change", async () => { say((await P.runs.post(`runs/limit?bytes=${limit.value}`)).error); refresh(); });
      const lost = stored.lost ? `${P.count(stored.lost)} events could not be stored.` : null;
      clear.hidden = !stored.playable;
      stores.replaceChildren(
        el("dl", {},
          el("dt", { text: "Database", "data-tip": "Size of the file with chats, runs and raw events, its log included. — where it is kept in memory only.", tabindex: "0" }), el("dd", { text: stored.file_bytes ? P.written(format.bytes(stored.file_bytes)) : "—" }),
          el("dt", { text: "Raw events", "data-tip": "Steps, tokens, block events and samples, from which runs are played. Estimated.", tabindex: "0" }), el("dd", { text: P.written(format.bytes(stored.raw_bytes)) }),
          el("dt", { text: "Keep at most", "data-tip": "Beyond this the oldest raw events are deleted. The figures of all runs stay.", tabindex: "0" }), el("dd", {}, limit),
          el("dt", { text: "Can be played" }), el("dd", { text: `${P.count(stored.playable)} of ${P.count(stored.requests)} runs` })),
        ...(lost ? [el("p", { class: "problem", text: lost })] : []));
    };

    const showPercentiles = (rows) => {
      spread.replaceChildren(...rows.map((row) => el("tr", {},
        el("th", { scope: "row" }, el("span", { text: row.label, "data-tip": row.tip, tabindex: "0" })),
        ...row.cells.map((cell) => el("td", { class: `num${cell.doubt ? " doubt" : ""}`, "data-tip": cell.doubt, tabindex: cell.doubt ? "0" : null }, number(format.ms(cell.ms)))),
        el("td", { class: "num", text: P.count(row.n) }))));
    };

    const showConfigs = (found) => {
      const options = [["", "Any configuration"], ...found.map((one) => [one.id, `${one.text} (${P.count(one.n)})`])];
      if (JSON.stringify(options) === configs.dataset.options) return;
      configs.dataset.options = JSON.stringify(options);
      configs.replaceChildren(...options.map(([value, text]) => { const option = el("option", { text }); option.value = value; return option; }));
      configs.value = wish.config;
    };

    const showRows = (answer) => {
      const filtered = Boolean(wish.search || wish.origin || wish.finish || wish.config);
      body.replaceChildren(...answer.rows.map((run) => {
        const row = el("tr", { "data-id": run.id, class: run.playable ? "" : "bare" }, ...COLUMNS.map(([, , , cell, name]) => el("td", { class: name }, cell(run))));
        row.addEventListener("click", (event) => { if (!event.target.closest("a")) window.location.hash = `requests/${run.id}`; });
        return row;
      }));
      table.hidden = !answer.rows.length;
      empty.hidden = Boolean(answer.rows.length);
      empty.replaceChildren(filtered
        ? el("p", { text: "No request is like that. Search for something else, or take the filters away." })
        : el("div", {}, el("p", { text: "Every request that the engine serves will stand here, with what it took. Each can be played again step by step, exported, and opened elsewhere." }), el("a", { class: "button strong", href: "#chat", text: "Write a message" })));
      heads.forEach((head, index) => { if (COLUMNS[index][0] === wish.sort && wish.sort) head.setAttribute("aria-sort", wish.order === "down" ? "descending" : "ascending"); else head.removeAttribute("aria-sort"); });
      const first = wish.page * ROWS;
      place.textContent = answer.found ? `${P.count(first + 1)} to ${P.count(first + answer.rows.length)} of ${P.count(answer.found)}` : "";
      back.disabled = wish.page === 0;
      on.disabled = first + answer.rows.length >= answer.found;
      paging.hidden = answer.found <= ROWS && !wish.page;
    };

    let unread = false; // what is said above is that the list could not be read
    const refresh = async () => {
      const turn = ++latest;
      const answer = await P.runs.get(`runs?${new URLSearchParams(wish)}`);
      if (turn !== latest) return;
      if (answer.error) { unread = true; say(answer.error); return; }
      if (unread) say("");
      unread = false;
      showStorage(answer.storage);
      showPercentiles(answer.percentiles);
      showConfigs(answer.configs);
      showRows(answer);
    };

    let typing = 0;
    search.addEventListener("input", () => { window.clearTimeout(typing); typing = window.setTimeout(() => { wish.search = search.value; wish.page = 0; refresh(); }, 150); });
    file.addEventListener("change", async () => {
      const [chosen] = file.files;
      if (!chosen) return;
      say("");
      const answer = await P.runs.post("runs/import", chosen);
      file.value = "";
      if (answer.error) say(answer.error); else window.location.hash = `requests/${answer.id}`;
    });

    // A request that has ended is stored a moment later.
    let seen = "";
    let waiting = 0;
    P.live.onText((store) => {
      const ended = [...store.requests.values()].filter((one) => one.state === "finished").map((one) => one.id).join();
      if (ended === seen) return;
      seen = ended;
      window.clearTimeout(waiting);
      waiting = window.setTimeout(() => { if (P.pages.current === "requests" && !root.hidden) refresh(); }, 900);
    });
    return { refresh };
  };
})();
