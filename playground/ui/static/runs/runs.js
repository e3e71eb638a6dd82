// The Requests page: the list of runs, or one of them (`#requests/12`, `#requests/tour/fork`). Which one: the address.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const HEADERS = { "X-Inference-Playground": "1" };
  const at = (path) => new URL(path, document.baseURI);

  // Every answer is JSON; one with `error` says in a sentence what went wrong.
  const asked = async (path, options) => {
    try {
      const answer = await window.fetch(at(path), options);
      return await answer.json();
    } catch { return { error: "The playground does not answer: reload the page when it is back." }; }
  };
  P.runs = {
    get: (path) => asked(path),
    post: (path, body) => asked(path, { method: "POST", headers: HEADERS, body }),
    link: (path) => at(path).href,
    when: (ms) => { const time = new Date(ms); const two = (n) => String(n).padStart(2, "0"); return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`; },
  };

  P.mountRuns = (element, config) => {
    const list = el("div", { class: "runs" });
    const detail = el("div", { class: "run", hidden: true });
    element.append(list, detail);
    const table = P.runTable(list);
    let open = null; // the run that is shown, with how to end it

    const show = () => {
      if (P.pages.current !== "requests") { if (open) open.player?.pause(); return; }
      const [, ...path] = window.location.hash.slice(1).split("/");
      const wanted = path.join("/");
      list.hidden = Boolean(wanted);
      detail.hidden = !wanted;
      if (open && open.path === wanted) return;
      if (open) { open.close(); open = null; }
      if (wanted) open = P.runDetail(detail, wanted, config.views); else table.refresh();
    };
    P.pages.onShow(show);
    window.addEventListener("hashchange", show);
  };
})();
