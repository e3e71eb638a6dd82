// Where the live frames and replies come from: the worker that all tabs of this browser share, or where there are none a
// stream of this tab's own. Losing the connection is said once and calmly, and mended by itself.
(() => {
  "use strict";
  const P = window.Playground;
  const LOST_MS = 1500; // a server that is back sooner was never missed
  // What is known of the engine beside its frames: which model it runs, whether another is being loaded.
  const hosts = [];
  P.host = {
    now: null,
    onChange: (listener) => { hosts.push(listener); if (P.host.now) listener(P.host.now); },
    take: (text) => { P.host.now = JSON.parse(text); for (const listener of hosts) listener(P.host.now); },
  };

  const listeners = [];
  let connected = true;
  let timer = 0;

  const say = (now) => { if (connected !== now) { connected = now; for (const listener of listeners) listener(now); } };
  const tell = (now) => {
    if (!now && timer) return; // every try that fails says so: the time counts from the first
    window.clearTimeout(timer);
    timer = now ? 0 : window.setTimeout(say, LOST_MS, false);
    if (now) say(true);
  };

  // The frames of one reply, the one that this tab shows; of the others only that they have ended.
  let [shown, reply] = [null, () => {}];
  // What else comes on the stream, by its name.
  const others = { comparison: () => {} };
  const takeOther = (name, text) => others[name](JSON.parse(text));

  const take = (text, again) => { if (!P.live.apply(JSON.parse(text))) again(); };
  const at = (name) => new URL(`live/${name}`, document.baseURI);

  const shared = () => {
    const worker = new SharedWorker(at("worker.js"), { name: "inference-playground" });
    const hello = () => worker.port.postMessage({ hello: P.page, shown });
    worker.onerror = own; // an old worker, or one that may not be loaded
    worker.port.onmessage = ({ data }) => {
      if ("connected" in data) tell(data.connected);
      else if (data.host) P.host.take(data.host);
      else if (data.reply) reply(data.reply);
      else if (data.name) takeOther(data.name, data.data);
      else take(data.frame, hello);
    };
    P.stream.show = (number) => { shown = number; worker.port.postMessage({ shown }); };
    window.addEventListener("pagehide", () => worker.port.postMessage({ bye: true }));
    window.addEventListener("pageshow", (event) => { if (event.persisted) hello(); });
    hello();
  };

  const own = () => {
    let retry = 0;
    const source = new EventSource(at(`frames?page=${P.page}`));
    const again = () => { source.close(); window.clearTimeout(retry); retry = window.setTimeout(own, 3000); };
    source.onopen = () => tell(true);
    source.onmessage = (event) => take(event.data, () => { source.close(); own(); });
    source.addEventListener("host", (event) => P.host.take(event.data));
    source.addEventListener("reply", (event) => reply(JSON.parse(event.data)));
    for (const name of Object.keys(others)) source.addEventListener(name, (event) => takeOther(name, event.data));
    source.onerror = () => { tell(false); if (source.readyState === EventSource.CLOSED) again(); };
    P.stream.show = (number) => { shown = number; };
    window.addEventListener("pagehide", () => { window.clearTimeout(retry); source.close(); }, { once: true });
    window.addEventListener("pageshow", (event) => { if (event.persisted) own(); }, { once: true });
  };

  // What this page calls itself, so that the server knows whose replies to end when it says that it is being closed.
  P.page = Array.from(crypto.getRandomValues(new Uint32Array(3)), (part) => part.toString(36)).join("");
  window.addEventListener("pagehide", () => navigator.sendBeacon(at(`leave?page=${P.page}`)));

  P.stream = {
    onState: (listener) => listeners.push(listener),
    onReply: (listener) => { reply = listener; },
    on: (name, listener) => { others[name] = listener; },
    start: () => { if (window.SharedWorker) shared(); else own(); },
  };
  P.stream.start();
})();
