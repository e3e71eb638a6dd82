// Light or dark: as the system has it until somebody chooses, or as the address says (`?__theme=dark`). Gradio sets the body's
// class; a choice of this browser overrules it.
(() => {
  "use strict";
  const P = window.Playground;
  const STORED = "inference-playground.theme";
  const stored = () => { try { return window.localStorage.getItem(STORED); } catch { return null; } };
  const keep = (theme) => { try { window.localStorage.setItem(STORED, theme); } catch { /* private mode: forgotten on reload */ } };
  const isDark = () => document.body.classList.contains("dark");

  let chosen = new URLSearchParams(window.location.search).has("__theme") ? null : stored();
  const apply = () => { if (chosen && isDark() !== (chosen === "dark")) document.body.classList.toggle("dark"); };

  P.themeButton = () => {
    const button = P.el("button", { class: "tool theme", type: "button", "aria-label": "Dark colours", "data-tip": "Light or dark colours", onclick: () => { chosen = isDark() ? "light" : "dark"; keep(chosen); apply(); } }, P.icon("contrast"));
    const show = () => { apply(); button.setAttribute("aria-pressed", String(isDark())); };
    new MutationObserver(show).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    show();
    return button;
  };
})();
