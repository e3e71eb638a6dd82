// Drawing by hand: a canvas as sharp as the screen, colours from the style sheet that follow the theme, one tooltip.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  // Colours by their css variable without "--pg-". Read once a theme: getComputedStyle in a drawing loop is slow.
  const cache = new Map();
  const painters = new Set();
  P.color = (name) => {
    if (!cache.has(name)) cache.set(name, getComputedStyle(document.body).getPropertyValue(`--pg-${name}`).trim() || "#888");
    return cache.get(name);
  };
  P.FONT = "11px ui-sans-serif, system-ui, sans-serif";
  P.calm = window.matchMedia("(prefers-reduced-motion: reduce)");

  const KEY_STEP = 8; // css pixels that an arrow key moves

  // Called when everything must be drawn anew: another theme, another size.
  P.onRepaint = (paint) => { painters.add(paint); return () => painters.delete(paint); };
  let queued = 0;
  const repaint = () => {
    if (queued) return;
    queued = window.requestAnimationFrame(() => { queued = 0; cache.clear(); for (const paint of painters) paint(); });
  };
  new MutationObserver(repaint).observe(document.documentElement, { attributes: true, attributeFilter: ["class"] });
  document.addEventListener("DOMContentLoaded", () => new MutationObserver(repaint).observe(document.body, { attributes: true, attributeFilter: ["class"] }));
  window.addEventListener("resize", repaint);
  const widths = new WeakMap(); // of the pictures: asking a node for it makes the browser lay out the page
  const sizes = new ResizeObserver((entries) => { for (const entry of entries) widths.set(entry.target, Math.round(entry.contentRect.width)); repaint(); });

  // A picture of `height` css pixels, as wide as its place. Focusable; `label` names it, `says()` is what it shows in words.
  P.canvas = ({ label, height, className = "" }) => {
    const node = el("canvas", { class: `picture ${className}`, tabindex: "0", role: "img", "aria-label": label });
    let tall = height;
    node.style.height = `${tall}px`;
    sizes.observe(node);
    return {
      node,
      set height(value) { if (value !== tall) { tall = value; node.style.height = `${tall}px`; } },
      // Gets the drawing context ready in css pixels; null while the picture is not shown. Clears only where asked.
      begin(clear = true) {
        const width = widths.get(node) ?? node.clientWidth;
        if (!width || !tall) return null;
        const scale = window.devicePixelRatio || 1;
        const [w, h] = [Math.round(width * scale), Math.round(tall * scale)];
        const g = node.getContext("2d");
        const resized = node.width !== w || node.height !== h;
        if (resized) { node.width = w; node.height = h; }
        g.setTransform(scale, 0, 0, scale, 0, 0);
        if (clear) g.clearRect(0, 0, width, tall);
        return { g, width, height: tall, resized };
      },
      // What is under the pointer: `find(x, y)` gives a text, or null. With the focus on the picture, the arrow keys move a
      // pointer of their own from its right edge, where the latest is.
      hover(find, { keys = true } = {}) {
        const show = (x, y) => {
          const box = node.getBoundingClientRect();
          const text = find(x, y);
          if (text) P.tip.at(box.left + x, box.top + y, text); else P.tip.hide();
          return text;
        };
        const follow = (event) => { const box = node.getBoundingClientRect(); show(event.clientX - box.left, event.clientY - box.top); };
        const leave = () => { find(-1, -1); P.tip.hide(); };
        node.addEventListener("pointermove", follow);
        node.addEventListener("pointerdown", follow);
        node.addEventListener("pointerleave", leave);
        if (!keys) return;
        let at = null;
        node.addEventListener("keydown", (event) => {
          const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
          if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
          event.preventDefault();
          event.stopPropagation();
          at ||= [node.clientWidth, tall / 2];
          at = [[at[0] + by[0] * KEY_STEP, node.clientWidth], [at[1] + by[1] * KEY_STEP, tall]].map(([to, most]) => Math.max(0, Math.min(most - 1, to)));
          node.setAttribute("aria-description", show(...at) || "Nothing here");
        });
        node.addEventListener("blur", () => { if (at) leave(); at = null; node.removeAttribute("aria-description"); });
      },
      says(text) { if (node.getAttribute("aria-label") !== text) node.setAttribute("aria-label", text); },
    };
  };

  // A line through [x, y] points; null lifts the pen.
  P.trace = (g, points) => {
    g.beginPath();
    let pen = false;
    for (const point of points) {
      if (!point) { pen = false; continue; }
      if (pen) g.lineTo(point[0], point[1]); else g.moveTo(point[0], point[1]);
      pen = true;
    }
    g.stroke();
  };

  // A round number at or above the value, for the top of an axis whose middle should be round too.
  P.roundUp = (value) => {
    if (!(value > 0)) return 1;
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value * 0.999) * power;
  };
  P.axisLabel = (value) => Number(value.toPrecision(3)).toLocaleString("en-US");
})();
