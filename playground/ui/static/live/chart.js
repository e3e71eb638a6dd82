// A line chart over the latest samples: a grid from 0, lines that break where nothing was measured, a cursor with exact values.
(() => {
  "use strict";
  const P = window.Playground;
  const REST_MS = 1500; // samples further apart than this had a rest between them
  const LEFT = 38;

  // Places of samples in a picture of this width, and the sample nearest to a place.
  P.timeAxis = (store, width, left = LEFT, span = store.span) => {
    const x = (time) => width - 1 - ((store.time - time) / span) * (width - left - 1);
    return { x, time: (at) => store.time - ((width - 1 - at) / (width - left - 1)) * span, left, oldest: store.time - span };
  };
  P.recent = (store, span = store.span) => { const oldest = store.time - span - 500; const first = store.samples.findIndex((sample) => sample.time_ms >= oldest); return first < 0 ? [] : store.samples.slice(first); };
  P.nearest = (samples, time) => samples.reduce((best, sample) => (!best || Math.abs(sample.time_ms - time) < Math.abs(best.time_ms - time) ? sample : best), null);

  // series: [{value(sample), color, dash, steps}]; `ticks` divisions; `tip(sample)` is the hover.
  P.chart = ({ store, label, height, series, ticks = 2, least = 0, tip, whole = false }) => {
    const picture = P.canvas({ label, height });
    let cursor = null;
    const draw = () => {
      const surface = picture.begin();
      if (!surface) return;
      const { g, width } = surface;
      const samples = P.recent(store);
      const values = series.map((one) => samples.map((sample) => one.value(sample) ?? null));
      let top = P.roundUp(Math.max(least, ...values.flat().filter((value) => value !== null)));
      if (whole) top = Math.max(ticks, Math.ceil(top / ticks) * ticks);
      const axis = P.timeAxis(store, width);
      const y = (value) => 6 + (1 - value / top) * (height - 13);
      g.font = P.FONT;
      g.textAlign = "right";
      g.textBaseline = "middle";
      g.lineWidth = 1;
      for (let i = 0; i <= ticks; i++) {
        const value = (top * i) / ticks;
        const at = Math.round(y(value)) + 0.5;
        g.strokeStyle = P.color("line");
        g.beginPath(); g.moveTo(axis.left, at); g.lineTo(width, at); g.stroke();
        g.fillStyle = P.color("mute");
        g.fillText(P.axisLabel(value), axis.left - 6, at);
      }
      g.save();
      g.beginPath(); g.rect(axis.left, 0, width - axis.left, height); g.clip();
      series.forEach((one, index) => {
        g.strokeStyle = P.color(one.color);
        g.lineWidth = one.thin ? 1 : 1.5;
        g.lineJoin = "round";
        g.setLineDash(one.dash || []);
        const points = [];
        let before = null;
        values[index].forEach((value, at) => {
          const time = samples[at].time_ms;
          if (value === null || (before && time - before.time > REST_MS)) points.push(null);
          if (value !== null) {
            if (one.steps && before && points.at(-1)) points.push([axis.x(time), y(before.value)]);
            points.push([axis.x(time), y(value)]);
          }
          before = value === null ? null : { time, value };
        });
        P.trace(g, points);
      });
      g.setLineDash([]);
      g.restore();
      const under = cursor === null ? null : P.nearest(samples, axis.time(cursor));
      if (under) {
        g.strokeStyle = P.color("faint");
        g.lineWidth = 1;
        const at = Math.round(axis.x(under.time_ms)) + 0.5;
        g.beginPath(); g.moveTo(at, 4); g.lineTo(at, height - 4); g.stroke();
      }
    };
    picture.hover((x) => {
      cursor = x < LEFT ? null : x;
      draw();
      if (cursor === null) return null;
      const axis = P.timeAxis(store, picture.node.clientWidth);
      const under = P.nearest(P.recent(store), axis.time(cursor));
      return under && tip(under);
    });
    return { node: picture.node, draw, says: picture.says };
  };

  P.ago = (store, time) => { const seconds = (store.time - time) / 1000; return seconds < 0.2 ? "now" : `${P.format.number(seconds)[0]} s ago`; };
})();
