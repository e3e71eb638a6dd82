// Pictures to inspect, by plotly.js: fetched from this server when the first one is shown, drawn in the page's colours.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const L = P.lab = { views: new Map() };
  const CONFIG = { displayModeBar: false, responsive: false, doubleClick: false, scrollZoom: false };

  let loading = null;
  const load = () => {
    loading = loading || new Promise((resolve, reject) => {
      const script = el("script", { src: new URL("lab/plotly.min.js", document.baseURI), async: true });
      script.onload = () => resolve(window.Plotly);
      script.onerror = () => { loading = null; reject(new Error("plotly.js could not be loaded")); };
      document.head.append(script);
    });
    return loading;
  };
  // Asked once in a frame, however often a slider moves.
  const soon = (work) => { let queued = 0; return () => { queued = queued || window.requestAnimationFrame(() => { queued = 0; work(); }); }; };

  // `make()` gives plotly's {data, layout}; it is called whenever the picture is drawn. `says` is the picture in words.
  L.plot = ({ label, height, make }) => {
    const canvas = el("div", { class: "plot-canvas" });
    const node = el("div", { class: "plot", role: "img", "aria-label": label, tabindex: "0" }, canvas);
    node.style.minHeight = `${height}px`;
    const draw = soon(async () => {
      if (!node.isConnected || !canvas.clientWidth) return;
      try {
        const plotly = await load();
        const { data, layout } = make();
        await plotly.react(canvas, data, { ...layout, width: canvas.clientWidth }, CONFIG);
      } catch (error) {
        node.replaceChildren(el("p", { class: "problem", text: "The picture could not be drawn. The table beside it has the same numbers." }));
        throw error;
      }
    });
    let width = 0;
    new ResizeObserver(() => { if (canvas.clientWidth !== width) { width = canvas.clientWidth; draw(); } }).observe(canvas);
    const stop = P.onRepaint(() => { if (node.isConnected) draw(); });
    return { node, draw, says: (text) => node.setAttribute("aria-label", `${label}. ${text}`), remove: () => { stop(); if (window.Plotly) window.Plotly.purge(canvas); } };
  };

  // The looks of the Python figures (playground/ui/lab/reports/section.py), for those made here.
  L.layout = ({ x, y, height, legend = true, ...more }) => {
    const line = P.color("line");
    const axis = ({ title, ...own }) => ({ gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true, fixedrange: true, title: { text: title, standoff: 8, font: { size: 12 } }, ...own });
    return {
      template: {}, height, dragmode: false, showlegend: legend, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 12, t: legend ? 34 : 10, b: 8 }, font: { family: "ui-sans-serif, system-ui, sans-serif", size: 12, color: P.color("mute") },
      legend: { orientation: "h", x: 0, y: 1, xanchor: "left", yanchor: "bottom", itemclick: false, itemdoubleclick: false },
      xaxis: axis(x), yaxis: axis(y), ...more,
    };
  };
  // plotly reads a few tags in its texts.
  L.safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  L.dark = () => document.body.classList.contains("dark");
})();
