// Every run of every side as a dot, for one metric; a bar stands at each side's median.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const ROW = 52;
  const TOP = 6;
  const LEFT = 30;
  const RIGHT = 64;

  const step = (span) => {
    const power = 10 ** Math.floor(Math.log10(span / 4));
    return [1, 2, 2.5, 5, 10].find((one) => span / (one * power) <= 5) * power;
  };

  P.compare.dots = () => {
    const picture = P.canvas({ label: "Every run", height: 150, className: "dots" });
    const title = el("b", {});
    const node = el("div", { class: "plot" }, el("h3", {}, title, el("span", { text: "each dot a run" })), picture.node);
    let row = null;
    let letters = [];
    let placed = [];

    const paint = () => {
      if (!row) return;
      const frame = picture.begin();
      if (!frame) return;
      const { g, width } = frame;
      const bottom = TOP + ROW * row.dots.length;
      const values = row.dots.flat().map(([, value]) => value);
      const top = Math.max(...values, 0) || 1;
      const tick = step(top);
      const x = (value) => LEFT + (value / (Math.ceil((top * 1.02) / tick) * tick)) * (width - LEFT - RIGHT);
      g.font = P.FONT;
      g.textBaseline = "middle";
      g.textAlign = "center";
      let end = 0; // of the last label
      for (let i = 0; i * tick <= top * 1.02 + tick; i += 1) {
        const at = x(i * tick);
        if (at > width - RIGHT + 1) break;
        g.strokeStyle = P.color("line");
        g.beginPath(); g.moveTo(Math.round(at) + 0.5, TOP); g.lineTo(Math.round(at) + 0.5, bottom); g.stroke();
        g.fillStyle = P.color("mute");
        g.fillText(P.axisLabel(i * tick), at, bottom + 14);
        end = at + g.measureText(P.axisLabel(i * tick)).width / 2;
      }
      g.textAlign = "left";
      g.fillText(row.unit, end + 5, bottom + 14);
      placed = [];
      row.dots.forEach((runs, side) => {
        const middle = TOP + ROW * side + ROW / 2;
        g.textAlign = "left";
        g.fillStyle = P.color("ink");
        g.fillText(letters[side], 6, middle);
        g.fillStyle = P.compare.color(side);
        g.globalAlpha = 0.8;
        runs.forEach(([round, value], i) => {
          const y = middle + (runs.length > 1 ? [-6, 6, 0][i % 3] : 0);
          P.compare.dot(g, side, x(value), y, 4);
          placed.push({ x: x(value), y, text: `${letters[side]}, round ${round + 1}: ${P.written(P.format.number(value, row.unit))}` });
        });
        g.globalAlpha = 1;
        if (row.medians[side] !== null) {
          g.fillStyle = P.color("ink");
          g.fillRect(x(row.medians[side]) - 1, middle - 17, 2, 34);
        }
      });
    };
    P.onRepaint(paint);
    picture.hover((x, y) => {
      const near = placed.map((one) => [Math.hypot(one.x - x, one.y - y), one.text]).sort((a, b) => a[0] - b[0])[0];
      return near && near[0] < 12 ? near[1] : null;
    });

    return {
      node,
      show: (given, of) => {
        [row, letters] = [given, of];
        title.textContent = row.label;
        picture.height = TOP + ROW * row.dots.length + 28;
        const said = row.dots.map((runs, side) => `${letters[side]}: ${runs.map(([, value]) => P.format.number(value)[0]).join(", ") || "nothing"}`);
        picture.says(`${row.label} of every run${row.unit ? ` in ${row.unit}` : ""}. ${said.join(". ")}.`);
        paint();
      },
    };
  };
})();
