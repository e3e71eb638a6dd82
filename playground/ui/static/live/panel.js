// The instrument panel: an ordered list of views over one store. A view is `P.view(name, {title, tip, half, mount})`;
// `mount(view)` builds into `view.body` (buttons into `view.tools`) and returns {draw, text, slow}: `text` is for figures, called at
// most four times a second; `draw` for pictures, called while the view is on the screen, with every frame or, if `slow`, with the
// figures. The panel knows nothing of what a view shows.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const STORED = "inference-playground.panel";
  const WIDTH = { least: 360, best: 548, most: 960, step: 16 };
  const LEAST_CHAT = 420;
  const views = new Map();

  P.view = (name, definition) => views.set(name, definition);

  const remembered = () => { try { return JSON.parse(window.localStorage.getItem(STORED)) || {}; } catch { return {}; } };
  const remember = (change) => { try { window.localStorage.setItem(STORED, JSON.stringify({ ...remembered(), ...change })); } catch { /* private mode: forgotten on reload */ } };

  // The views named, over one store: also for a recording, which brings its own.
  P.panel = (names, store) => {
    const root = el("div", { class: "views" });
    const open = [];
    for (const name of names) {
      const definition = views.get(name);
      const note = el("span", { class: "note" });
      const tools = el("span", { class: "tools" });
      const body = el("div", { class: "body" });
      const words = el("p", { class: "offscreen" });
      const node = el("section", { class: `view${definition.half ? " half" : ""}`, id: store === P.live ? `view-${name}` : null, "aria-label": definition.title },
        el("h3", {}, el("span", { class: "name", text: definition.title, "data-tip": definition.tip, tabindex: "0" }), tools, note), body, words);
      root.append(node);
      const view = {
        store, body, tools, node,
        note: (text) => { if (note.textContent !== text) note.textContent = text; },
        says: (text) => { if (words.textContent !== text) words.textContent = text; },
      };
      open.push({ node, seen: true, ...definition.mount(view) });
    }
    const watch = new IntersectionObserver((entries) => { for (const entry of entries) { const view = open.find((one) => one.node === entry.target); view.seen = entry.isIntersecting; } queue(); });
    for (const view of open) watch.observe(view.node);
    let queued = 0;
    let all = true; // the slow ones too
    const paint = () => { queued = 0; if (store.epoch !== null) for (const view of open) if (view.seen && view.draw && (all || !view.slow)) view.draw(); all = false; };
    const queue = (slow = true) => { all ||= slow; if (!queued) queued = window.requestAnimationFrame(paint); };
    store.onFrame(() => { if (!P.calm.matches) queue(false); }); // who wants little motion sees pictures change with the figures
    store.onText(() => { for (const view of open) if (view.text) view.text(); queue(); });
    P.onRepaint(() => { for (const view of open) if (view.redraw) view.redraw(); queue(); });
    return root;
  };

  P.mountPanel = (element, config) => {
    const page = document.getElementById("page-chat");
    const most = () => Math.max(WIDTH.least, Math.min(WIDTH.most, page.clientWidth - 224 - LEAST_CHAT));
    const handle = el("div", { class: "handle", role: "separator", tabindex: "0", "aria-orientation": "vertical", "aria-label": "Width of the instrument panel", "aria-controls": "instruments", "aria-valuemin": String(WIDTH.least), "data-tip": "Drag, or use the arrow keys, to make the panel wider or narrower; Home gives it its usual width" });
    let width = remembered().width || WIDTH.best;
    const set = (wanted, keep) => {
      width = Math.round(Math.min(Math.max(wanted, WIDTH.least), keep ? most() : WIDTH.most));
      page.style.setProperty("--pg-panel-width", `${width}px`);
      handle.setAttribute("aria-valuenow", String(width));
      handle.setAttribute("aria-valuemax", String(most()));
      if (keep) remember({ width });
    };
    handle.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: WIDTH.step, ArrowRight: -WIDTH.step }[event.key];
      if (by) set(width + by, true); else if (event.key === "Home") set(WIDTH.best, true); else return;
      event.preventDefault();
    });
    handle.addEventListener("pointerdown", (event) => { if (event.button === 0) { handle.setPointerCapture(event.pointerId); event.preventDefault(); handle.focus(); document.body.classList.add("resizing"); } });
    handle.addEventListener("pointermove", (event) => { if (handle.hasPointerCapture(event.pointerId)) set(page.getBoundingClientRect().right - event.clientX, true); });
    handle.addEventListener("lostpointercapture", () => document.body.classList.remove("resizing"));
    handle.addEventListener("dblclick", () => set(WIDTH.best, true));

    // On a narrow page the panel lies under the chat, folded away behind this button.
    const fold = el("button", { class: "fold", type: "button", "aria-controls": "instruments" }, el("span", { text: "Instruments" }), el("span", { class: "note" }));
    const setOpen = (open) => { page.classList.toggle("unfolded", open); document.body.classList.toggle("unfolded", open); fold.setAttribute("aria-expanded", String(open)); };
    fold.addEventListener("click", () => { const open = fold.getAttribute("aria-expanded") !== "true"; setOpen(open); remember({ open }); });
    P.live.onText(() => {
      const { num_blocks: total } = P.live.facts;
      const { running, blocks_in_use: used } = P.live.now;
      fold.lastChild.textContent = `${running} running${total ? ` · ${P.count(used)} blocks` : ""}`;
    });
    element.append(fold, handle, el("aside", { class: "instruments", id: "instruments", "aria-label": "Instruments" }, P.panel(config.views, P.live)));
    set(width, false);
    setOpen(Boolean(remembered().open));
    P.onRepaint(() => handle.setAttribute("aria-valuemax", String(most())));
  };
})();
