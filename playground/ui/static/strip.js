// The headline strip and the top bar. Numbers arrive at most four times a second while something runs and not at all when
// idle; each tile keeps its own last samples for the small line beside it.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const SAMPLES = 80; // 20 s of work at 4 Hz
const REST_MS = 2500; // a little longer than the window of the rates

  const color = (node, name) => getComputedStyle(node).getPropertyValue(name).trim();

  const line = (canvas, samples) => {
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width || !height) return;
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const g = canvas.getContext("2d");
    g.scale(scale, scale);
    const known = samples.filter((value) => value !== null);
    if (known.length < 4) return;
    const top = Math.max(...known) || 1;
    g.strokeStyle = color(canvas, "--pg-kv");
    g.lineWidth = 1.2;
    g.lineJoin = "round";
    g.beginPath();
    let pen = false;
    samples.forEach((value, index) => {
      if (value === null) { pen = false; return; }
      const x = width - (samples.length - 1 - index) * (width / (SAMPLES - 1));
      const y = height - 2 - (value / top) * (height - 5); // from 0: a rate is never drawn from a raised floor
      if (pen) g.lineTo(x, y); else g.moveTo(x, y);
      pen = true;
    });
    g.stroke();
  };

  P.mountStrip = (element, props, watch, config) => {
    const tiles = config.tiles.map((tile) => {
      const value = el("b", { text: "—" });
      const unit = el("small");
      const canvas = tile.line ? el("canvas", { "aria-hidden": "true" }) : null;
      const parts = tile.parts ? el("span", { class: "parts", "aria-hidden": "true" }, ...tile.parts.map((part) => el("i", { class: part }))) : null;
      const node = el("div", { class: "tile", tabindex: "0", role: "group", "data-tip": tile.tip }, el("span", { class: "label" }, P.long(tile)), el("span", { class: "value" }, value, unit), canvas, parts);
      return { ...tile, node, value, unit, canvas, parts, samples: [] };
    });
    element.append(el("section", { class: "strip", "aria-label": "Engine figures" }, ...tiles.map((tile) => tile.node)));

    let resting = 0; // a rate means nothing once the engine rests: then its tile says so
    const redraw = () => tiles.forEach((tile) => { if (tile.canvas) line(tile.canvas, tile.samples); });
    P.bind(props, watch, (frame) => {
      if (!frame) return;
      for (const tile of tiles) {
        const now = frame.tiles[tile.name];
        if (!now) continue;
        if (tile.value.textContent !== now.text) tile.value.textContent = now.text;
        if (tile.unit.textContent !== (now.unit || "")) tile.unit.textContent = now.unit || "";
        if (now.tip) tile.node.dataset.tip = now.tip;
        if (now.label) tile.node.firstElementChild.replaceChildren(P.long(now));
        tile.node.setAttribute("aria-label", `${now.label || tile.label}: ${now.text} ${now.unit || ""}`);
        if (tile.parts && now.parts) now.parts.forEach((share, index) => { tile.parts.children[index].style.flexGrow = share; tile.parts.children[index].classList.toggle("some", share > 0); });
        if (tile.canvas && frame.sample) { tile.samples.push(now.sample ?? null); tile.samples.splice(0, tile.samples.length - SAMPLES); }
      }
      redraw();
      window.clearTimeout(resting);
      if (frame.sample) resting = window.setTimeout(() => { for (const tile of tiles) if (tile.line === "rate") { tile.value.textContent = "—"; tile.unit.textContent = ""; } }, REST_MS);
    });
    window.addEventListener("resize", redraw);
    new MutationObserver(redraw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  };

  P.mountTopbar = (element, config) => {
    const menu = el("button", { class: "tool menu", type: "button", "aria-label": "Chats", "aria-expanded": "false", onclick: () => P.calls.drawer() }, P.icon("menu"));
    P.calls.drawerChanged = (open) => menu.setAttribute("aria-expanded", String(open));
    const pages = el("nav", { class: "pages", "aria-label": "Pages" }, ...config.pages.map((page) => el("a", { class: "current", href: ".", "aria-current": "page", text: page })));
    const chips = el("div", { class: "chips" }, ...config.chips.map((chip) => el("span", { class: "chip", "data-tip": chip.tip, tabindex: "0" }, P.long({ label: chip.text, short: chip.short }))));
    element.append(el("header", { class: "topbar" }, menu, el("h1", { text: config.name }), pages, el("span", { class: "spacer" }), chips));
  };
})();
