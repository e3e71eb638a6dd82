// The chat page's keys, and the sheet that lists them. Escape and Ctrl/Cmd+K, which work on every page, are in core/core.js.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;
  const KEYS = [
    [["Enter"], "Send the message"], [["Shift", "Enter"], "New line"], [["Esc"], "Stop the reply, or leave the message box"],
    [["Ctrl", "Enter"], "Write the last reply again"], [["1"], "Text"], [["2"], "Speculation"], [["3"], "Confidence"], [["4"], "Timing"],
    [["←", "→"], "From token to token, once one has the focus"], [["Ctrl", "K"], "Search the chats"], [["Ctrl", "B"], "Show or hide the chats"], 
    [["Space"], "Hold the map of blocks still, once it has the focus"], [["↑", "↓", "←", "→"], "Read the values of a picture that has the focus"], [["?"], "This sheet"],
  ];

  let sheet = null;
  P.calls.keys = () => {
    if (!sheet) {
      const rows = KEYS.flatMap(([keys, text]) => [el("dt", {}, ...keys.flatMap((key, i) => [i ? (/[←-↓]/.test(key) ? " " : " + ") : "", el("kbd", { text: key })])), el("dd", { text })]);
      const close = el("button", { class: "button", type: "button", text: "Close", onclick: () => sheet.close() });
      sheet = el("dialog", { class: "sheet", "aria-label": "Keyboard shortcuts", onclick: (event) => { if (event.target === sheet) sheet.close(); } },
        el("h2", { text: "Keyboard shortcuts" }), el("dl", {}, ...rows), el("p", { class: "caption", text: "1 to 4 and ? work outside of text boxes; inside one, hold Alt with them." }), close);
      document.getElementById("page").append(sheet);
    }
    if (sheet.open) sheet.close(); else sheet.showModal();
  };

  const writing = (target) => target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
  document.addEventListener("keydown", (event) => {
    if (P.pages.current !== "chat" || event.defaultPrevented || event.isComposing) return;
    const command = event.ctrlKey || event.metaKey;
    const free = !command && (event.altKey || !writing(event.target));
    const answer = (what) => { event.preventDefault(); what(); };
    if (sheet && sheet.open) { // the browser closes a dialog at Escape; a reply goes on
      if (event.key === "Escape") event.stopPropagation();
      if (event.key === "?") answer(P.calls.keys);
      return;
    }
    if (command && !event.altKey && !event.shiftKey && event.key === "Enter") {
      const box = document.querySelector("#composer .box > textarea");
      if (event.target === box && box.value.trim()) return; // Enter sends what is written there
      if (!writing(event.target) || event.target === box) { answer(P.calls.retry); event.stopPropagation(); }
    } else if (command && !event.altKey && !event.shiftKey && event.key.toLowerCase() === "b") answer(P.calls.sidebar);
    else if (free && /^(Digit|Numpad)[1-4]$/.test(event.code)) answer(() => P.views.at(Number(event.code.at(-1)) - 1));
    else if (free && event.key === "?") answer(P.calls.keys);
    else if (event.key === "Escape" && !P.state.running && event.target.closest && event.target.closest("#composer .box > textarea")) event.target.blur();
  }, true);
})();
