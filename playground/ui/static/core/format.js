// How numbers are written, as in playground/telemetry/format.py: three significant digits, "—" for what was not measured,
// binary byte units. Each function gives [number, unit]; P.written joins them.
(() => {
  "use strict";
  const P = window.Playground;
  const NOTHING = ["—", ""];
  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  const known = (value) => typeof value === "number" && Number.isFinite(value);

  const writers = []; // by decimals: making one takes far longer than using it
  const digits = (value) => {
    if (value === 0) return "0";
    const rounded = Number(value.toPrecision(3));
    if (Math.abs(rounded) < 0.001) return value > 0 ? "<0.001" : ">-0.001";
    const decimals = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(rounded))));
    writers[decimals] ||= new Intl.NumberFormat("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
    return writers[decimals].format(rounded);
  };

  P.format = {
    count: (value) => (known(value) ? [value.toLocaleString("en-US"), ""] : NOTHING),
    number: (value, unit = "") => (known(value) ? [digits(value), unit] : NOTHING),
    rate: (value) => P.format.number(value, "tok/s"),
    percent: (fraction) => (known(fraction) ? [digits(fraction * 100), "%"] : NOTHING),
    ms: (value) => {
      if (!known(value)) return NOTHING;
      return Math.abs(Number(value.toPrecision(3))) < 1000 ? [digits(value), "ms"] : [digits(value / 1000), "s"];
    },
    bytes: (value) => {
      if (!known(value)) return NOTHING;
      if (Math.abs(value) < 1024) return [value.toFixed(0), "B"];
      let power = 0;
      while (Math.abs(value) >= 1024 && power < UNITS.length - 1) { value /= 1024; power += 1; }
      return [digits(value), UNITS[power]];
    },
  };
  // A length of time that was chosen and not measured: "4 s".
  P.spanText = (value) => (value % 1000 === 0 ? `${value / 1000} s` : P.written(P.format.ms(value)));
  P.written = ([number, unit]) => (unit ? `${number} ${unit}` : number);
})();
