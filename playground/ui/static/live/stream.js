// Where the live frames come from: the worker that all tabs of this browser share, or where there are none a stream of this
// tab's own. Losing the connection is said once and calmly, and mended by itself.
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

  const take = (text, again) => { if (!P.live.apply(JSON.parse(text))) again(); };
  const at = (name) => new URL(`live/${name}`, document.baseURI);

  const shared = () => {
    const worker = new SharedWorker(at("worker.js"), { name: "inference-playground" });
    const hello = () => worker.port.postMessage("hello");
    worker.onerror = own; // an old worker, or one that may not be loaded
    worker.port.onmessage = ({ data }) => { if ("connected" in data) tell(data.connected); else if (data.host) P.host.take(data.host); else take(data.frame, hello); };
    window.addEventListener("pagehide", () => worker.port.postMessage("bye"));
    window.addEventListener("pageshow", (event) => { if (event.persisted) hello(); });
    hello();
  };

  const own = () => {
    let retry = 0;
    const source = new EventSource(at("frames"));
    const again = () => { source.close(); window.clearTimeout(retry); retry = window.setTimeout(own, 3000); };
    source.onopen = () => tell(true);
    source.onmessage = (event) => take(event.data, () => { source.close(); own(); });
    source.addEventListener("host", (event) => P.host.take(event.data));
    source.onerror = () => { tell(false); if (source.readyState === EventSource.CLOSED) again(); };
    window.addEventListener("pagehide", () => { window.clearTimeout(retry); source.close(); }, { once: true });
    window.addEventListener("pageshow", (event) => { if (event.persisted) own(); }, { once: true });
  };

  // What this page calls itself, so that the server knows whose replies to end when it says that it is being closed.
  P.page = Array.from(crypto.getRandomValues(new Uint32Array(3)), (part) => part.toString(36)).join("");
  window.addEventListener("pagehide", () => navigator.sendBeacon(at(`leave?page=${P.page}`)));

  P.stream = {
    onState: (listener) => listeners.push(listener),
    start: () => { if (window.SharedWorker) shared(); else own(); },
  };
  P.stream.start();
})();
