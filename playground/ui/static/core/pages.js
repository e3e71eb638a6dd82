// The top bar, and which page is shown. Pages stay mounted, so that what streams into one goes on while another is looked at;
// the address's hash names the page: a link, the back button and a reload lead to it.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const rule = el("style");
  document.head.append(rule);
  const listeners = [];
  let titles = new Map();
  let [app, home] = ["", ""]; // the page's name, and the page that opens where the address names none

  const pages = P.pages = {
    current: "",
    onShow: (listener) => { listeners.push(listener); if (pages.current) listener(pages.current); },
    show: (name) => {
      if (!titles.has(name)) name = home;
      if (name === pages.current) return;
      pages.current = name;
      rule.textContent = `#page > .page:not(#page-${name}) { display: none !important; }`;
      for (const link of document.querySelectorAll("#page .pages a")) {
        if (link.dataset.page === name) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
      }
      retitle();
      for (const listener of listeners) listener(name);
    },
    // What the browser's tab is called: a page may say more than its name, as the chat page does with a chat's title.
    title: (name, text) => { says.set(name, text); retitle(); },
  };
  const says = new Map();
  const retitle = () => {
    const text = says.get(pages.current) || (pages.current === home ? "" : titles.get(pages.current));
    document.title = text ? `${text} · ${app}` : app;
  };
  const wanted = () => window.location.hash.slice(1).split(/[?/]/)[0];
  window.addEventListener("hashchange", () => pages.show(wanted()));

  P.mountTopbar = (element, config) => {
    [app, home] = [config.name, config.home];
    titles = new Map(config.pages.map((page) => [page.name, page.title]));
    const menu = el("button", { class: "tool menu", type: "button", "aria-label": "Chats", "aria-expanded": "false", onclick: () => { pages.show("chat"); P.calls.drawer(); } }, P.icon("menu"));
    P.calls.drawerChanged = (open) => menu.setAttribute("aria-expanded", String(open));
    const links = el("nav", { class: "pages", "aria-label": "Pages" }, ...config.pages.map((page) => el("a", { href: `#${page.name}`, "data-page": page.name, text: page.title })));
    const chips = el("span", { class: "about" });
    const step = el("span", { class: "chip step", "data-tip": "Engine steps since the start: each runs the model once over whatever is due.", tabindex: "0", hidden: true });
    const lost = el("span", { class: "chip lost", role: "status", hidden: true, "data-tip": "Nothing comes from the playground at present: what is shown is the last that came. It is tried again every few seconds." });
    element.append(el("header", { class: "topbar" }, el("h1", { text: config.name }), links, el("span", { class: "spacer" }), el("div", { class: "chips" }, lost, chips, step), P.themeButton(), menu));
    let said = "";
    P.host.onChange((host) => {
      const loading = host.loading && !host.loading.ended ? host.loading : null;
      const all = [...host.chips];
      if (loading) all.unshift({ text: `loading ${loading.model}`, short: "loading", tip: `Being loaded: ${loading.text}. The Models page says more.` });
      else if (host.busy && host.loaded) all.unshift({ text: host.busy, short: host.busy, tip: "Messages wait until it has ended." });
      if (said === JSON.stringify(all)) return;
      said = JSON.stringify(all);
      chips.replaceChildren(...all.map((chip) => el("span", { class: "chip", "data-tip": chip.tip, tabindex: "0" }, P.long({ label: chip.text, short: chip.short }))));
    });
    P.live.onText(() => {
      step.hidden = !P.live.now.step;
      step.textContent = `step ${P.written(P.format.count(P.live.now.step))}`;
    });
    P.stream.onState((connected) => { lost.hidden = connected; lost.textContent = connected ? "" : "Connection lost, trying again"; });
    pages.show(wanted());
  };
})();
