// How busy the GPU is, what it draws and how fast it is clocked, as its driver says. Rows are there only with a GPU that tells.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;

  // [label, definition, value(sample), written(sample)]
  const ROWS = [
    ["Busy", "Share of the time in which any kernel ran, as the driver reports it (NVML). It does not say how much of the GPU that kernel used.", (now) => now.gpu_busy, (now) => P.written(format.percent(now.gpu_busy))],
    ["Power", "What the GPU draws, of what it may draw, as the driver reports it (NVML).", (now) => now.gpu_power_w, (now) => `${P.written(format.number(now.gpu_power_w, "W"))}${now.gpu_power_limit_w ? ` of ${P.written(format.number(now.gpu_power_limit_w, "W"))}` : ""}`],
    ["Clock", "Of the multiprocessors, of the highest there is, as the driver reports it (NVML).", (now) => now.gpu_clock_mhz, (now) => `${P.count(now.gpu_clock_mhz)}${now.gpu_clock_limit_mhz ? ` of ${P.count(now.gpu_clock_limit_mhz)}` : ""} MHz`],
  ];
  const SHARES = [(now) => now.gpu_busy, (now) => (now.gpu_power_limit_w ? now.gpu_power_w / now.gpu_power_limit_w : null), (now) => (now.gpu_clock_limit_mhz ? now.gpu_clock_mhz / now.gpu_clock_limit_mhz : null)];

  P.view("gpu", {
    title: "GPU",
    tip: "Load of the GPU, measured by its driver (NVML) twice a second.",
    mount: (view) => {
      const { store } = view;
      const nothing = el("p", { class: "small" });
      const rows = ROWS.map(([label, tip]) => {
        const bar = el("i");
        const value = el("b", { text: "—" });
        return { node: el("div", { class: "meter" }, el("span", { text: label, "data-tip": tip, tabindex: "0" }), el("div", { class: "track" }, bar), value), bar, value };
      });
      view.body.append(...rows.map((row) => row.node), nothing);
      const text = () => {
        const { now } = store;
        const shown = ROWS.filter(([, , value]) => typeof value(now) === "number");
        rows.forEach((row, index) => {
          const [, , value, written] = ROWS[index];
          row.node.hidden = typeof value(now) !== "number";
          if (row.node.hidden) return;
          row.value.textContent = written(now);
          const share = SHARES[index](now);
          row.bar.style.width = share === null ? "0" : `${Math.min(100, share * 100).toFixed(1)}%`;
        });
        nothing.hidden = shown.length > 0;
        nothing.textContent = now.memory_reserved === null ? "The model runs on the processor: busy time, power and clocks of a GPU do not apply." : "This GPU's driver does not report its load.";
        view.note(now.gpu_slowed ? "slowed by heat or its power limit: timings are not comparable" : "");
        view.says(shown.length ? shown.map(([label, , , written]) => `${label} ${written(now)}.`).join(" ") : nothing.textContent);
      };
      return { text };
    },
  });
})();
