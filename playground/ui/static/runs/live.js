// "Run live", where a GPU is lent for single calls: a message, its reply as it is written, then the run as a replay.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  P.mountRunLive = (element, props, watch, trigger, config) => {
    const box = el("input", { type: "text", value: config.example, "aria-label": "Message of the live run", maxlength: "2000", autocomplete: "off" });
    const button = el("button", { class: "button strong", type: "submit", text: "Run live" });
    const reply = el("p", { class: "reply", hidden: true });
    const said = el("p", { class: "note", role: "status" });
    const problem = el("p", { class: "problem", role: "alert", hidden: true });
    const rest = `Takes at most ${config.seconds} s of your GPU quota: the bundled model is loaded, answers once and is let go. The run then opens here, to be played step by step.`;
    let latest = 0;
    const busy = (now) => { button.disabled = now; button.textContent = now ? "Running" : "Run live"; };
    const start = (event) => { event.preventDefault(); busy(true); said.textContent = "Waiting for a GPU"; trigger("run", { message: box.value }); };
    said.textContent = rest;
    element.append(el("section", { class: "run-live", "aria-label": "Run live" }, el("h2", { text: "Run live on a GPU" }), el("form", { onsubmit: start }, box, button), said, reply, problem));

    P.bind(props, watch, (value) => {
      if (!value || value.rev <= latest) return;
      latest = value.rev;
      busy(value.phase !== "ended");
      reply.textContent = value.text;
      reply.hidden = !value.text;
      problem.textContent = value.error || "";
      problem.hidden = !value.error;
      said.textContent = value.phase === "loading" ? "Loading the model" : value.phase === "writing" ? `Writing on ${value.device}: ${P.count(value.tokens)} tokens` : rest;
      if (value.run !== null) { reply.hidden = true; window.location.hash = `requests/${value.run}`; }
    });
  };
})();
