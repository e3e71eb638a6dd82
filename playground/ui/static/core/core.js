// What every component shares: building DOM without parsing HTML, icons, one small state, tooltips, the scroll anchor.
// Text from a user or a model enters the page only as a text node or through textContent.
(() => {
  "use strict";
  const P = (window.Playground = {});

  // A node; `props` are attributes, except class, text, value and on* (listeners). Children are nodes or strings.
  const el = P.el = (tag, props = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(props)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") node.className = value;
      else if (name === "text") node.textContent = value;
      else if (name === "value") node.value = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };

  const ICONS = {
    plus: "M8 3v10M3 8h10",
    menu: "M2.5 4.5h11M2.5 8h11M2.5 11.5h11",
    pencil: "M3 13l.7-2.9 7-7a1.3 1.3 0 0 1 1.9 0l.3.3a1.3 1.3 0 0 1 0 1.9l-7 7L3 13z",
    trash: "M3 4.5h10M6.3 4.5V3h3.4v1.5M4.5 4.5l.6 8.5h5.8l.6-8.5",
    close: "M4 4l8 8M12 4l-8 8",
    pause: "M5.5 4v8M10.5 4v8",
    play: "M5.5 3.8v8.4l6.5-4.2z",
    contrast: "M8 2.5a5.5 5.5 0 1 0 0 11a5.5 5.5 0 0 0 0-11zM8 2.5v11M10 3v10M12 4.4v7.2",
    download: "M8 2.5v7.5M4.8 7L8 10.2 11.2 7M3 13.2h10",
  };
  P.icon = (name) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    for (const [key, value] of Object.entries({ viewBox: "0 0 16 16", class: "icon", "aria-hidden": "true" })) svg.setAttribute(key, value);
    path.setAttribute("d", ICONS[name]);
    svg.append(path);
    return svg;
  };

  // The only state components share: which chat this tab shows and its last message there, whether a reply is running
  // in it, and the engine's id of the latest request that this tab had or saw written.
  P.state = { chat: null, head: 0, running: false, tokens: null, request: null };
  const listeners = [];
  P.onState = (listener) => listeners.push(listener);
  P.setState = (change) => {
    const changed = Object.keys(change).filter((key) => P.state[key] !== change[key]);
    if (!changed.length) return;
    Object.assign(P.state, change);
    for (const listener of listeners) listener(P.state, changed);
  };
  // Calls from one component to another (composer.send, composer.restore, sessions.toggle); set by the one that answers.
  P.calls = {};

  // Renders whenever the server sent a value, and once now for the value the page was built with.
  P.bind = (props, watch, render) => {
    watch("value", () => render(props.value));
    render(props.value);
  };

  // A label with a shorter form for narrow pages; css shows one of the two.
  P.long = ({ label, short }) => {
    if (!short) return document.createTextNode(label);
    return el("span", {}, el("span", { class: "long", text: label }), el("span", { class: "short", text: short }));
  };

  // A button for what cannot be undone: the first click asks, the second one does it. It stays armed for as long as it
  // is attended to; a click or the focus elsewhere, or Escape, lets go of it. `face()` is what it shows at rest.
  P.sureButton = ({ face, sure, act, ...props }) => {
    let armed = false;
    const elsewhere = (event) => { if (!node.contains(event.target)) arm(false); };
    const arm = (now) => {
      armed = now;
      node.replaceChildren(now ? sure : face());
      if (now) document.addEventListener("pointerdown", elsewhere, true); else document.removeEventListener("pointerdown", elsewhere, true);
    };
    const node = el("button", {
      type: "button", ...props, onblur: () => arm(false),
      onclick: () => { const now = armed; arm(!now); if (now) act(); },
      onkeydown: (event) => { if (event.key === "Escape" && armed) { event.preventDefault(); arm(false); } },
    }, face());
    return node;
  };

  P.count = (value) => value.toLocaleString("en-US");

  // The conversation stays at its end while it grows, unless the reader scrolled up.
  P.scroller = {
    stick: true,
    node: () => document.getElementById("conversation"),
    attach() {
      const node = this.node();
      if (!node || node.dataset.anchored) return;
      node.dataset.anchored = "1";
      node.tabIndex = 0;
      node.setAttribute("aria-label", "Conversation");
      node.setAttribute("role", "region");
      node.addEventListener("scroll", () => { this.stick = node.scrollHeight - node.scrollTop - node.clientHeight < 48; }, { passive: true });
    },
    follow(force = false) {
      this.attach();
      const node = this.node();
      if (!node) return;
      if (force) this.stick = true;
      if (this.stick) node.scrollTop = node.scrollHeight;
    },
  };

  P.copy = async (text) => {
    if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
    const area = P.el("textarea", { value: text, class: "offscreen", "aria-hidden": "true" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };

  // One tooltip for the page, for whatever carries data-tip; shown on hover and on keyboard focus, hidden by Escape.
  const tip = P.el("div", { class: "tip", role: "tooltip", id: "playground-tip", hidden: true });
  // Definitions say in their first words what they define and whether that is measured or estimated: this is shown as a badge.
  const DEFINITION = /^((?:[^,:]+, )?)(measured|estimated)\b/i;
  const fillTip = (text) => {
    const [whole, name, kind] = text.match(DEFINITION) || ["", "", ""];
    tip.replaceChildren(el("b", { text: name }), ...(kind ? [el("span", { class: "kind", text: kind })] : []), text.slice(whole.length));
  };
  const placeTip = (text, at) => {
    if (tip.textContent !== text) fillTip(text);
    tip.hidden = false;
    if (!tip.isConnected) document.body.append(tip);
    tip.style.maxWidth = `${Math.min(320, window.innerWidth - 16)}px`;
    const box = tip.getBoundingClientRect();
    const below = at.bottom + 6 + box.height < window.innerHeight;
    tip.style.left = `${Math.max(8, Math.min(at.left, window.innerWidth - box.width - 8))}px`;
    tip.style.top = `${below ? at.bottom + 6 : at.top - box.height - 6}px`;
  };
  const showTip = (target) => {
    placeTip(target.dataset.tip, target.getBoundingClientRect());
    target.setAttribute("aria-describedby", tip.id);
  };
  // For what is inside a picture: a text beside a point of the window.
  P.tip = { at: (x, y, text) => placeTip(text, { left: x + 12, top: y - 4, bottom: y + 8 }), hide: () => { tip.hidden = true; } };
  const hideTip = (event) => {
    tip.hidden = true;
    const target = event && event.target.closest && event.target.closest("[data-tip]");
    if (target) target.removeAttribute("aria-describedby");
  };
  const tipped = (event) => event.target.closest && event.target.closest("[data-tip]");
  document.addEventListener("pointerover", (event) => { const target = tipped(event); if (target) showTip(target); });
  document.addEventListener("pointerout", (event) => { if (tipped(event)) hideTip(event); });
  document.addEventListener("focusin", (event) => { const target = tipped(event); if (target && target.matches(":focus-visible")) showTip(target); });
  document.addEventListener("focusout", hideTip);
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);

  // Before a reload Gradio's client aborts its own streams, logs that as an error of the page that is going away, and
  // then that the connection "errored out". These two messages say nothing; every other one stays.
  const { error } = console;
  let aborted = -Infinity;
  console.error = (...said) => {
    if (said[0] && said[0].name === "AbortError") aborted = performance.now();
    else if (performance.now() - aborted > 1000 || !said.join(" ").includes("Connection errored out")) error.apply(console, said);
  };

  // Escape stops a reply from anywhere; Ctrl/Cmd+K searches the chats.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      tip.hidden = true;
      if (!event.defaultPrevented && P.state.running && P.calls.stop) { event.preventDefault(); P.calls.stop(); }
    }
    if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.altKey && P.calls.search) { event.preventDefault(); P.calls.search(); }
  });
})();
