// Runs once for all tabs of a browser: reads the one stream of live frames and hands every frame to every tab. A tab that
// comes, or has missed something, is given a fresh start by opening the stream anew: it begins with all there is.
"use strict";
const ports = new Set();
let source = null;
let retry = 0;

const tell = (message) => { for (const port of ports) port.postMessage(message); };

const open = () => {
  clearTimeout(retry);
  if (source) source.close();
  if (!ports.size) { source = null; return; }
  source = new EventSource(new URL("frames", self.location.href));
  source.onopen = () => tell({ connected: true });
  source.onmessage = (event) => tell({ frame: event.data });
  source.addEventListener("host", (event) => tell({ host: event.data }));
  source.onerror = () => {
    tell({ connected: false });
    if (source.readyState === EventSource.CLOSED) retry = setTimeout(open, 3000); // else the browser tries again itself
  };
};

self.onconnect = (event) => {
  const [port] = event.ports;
  port.onmessage = ({ data }) => {
    if (data === "bye") ports.delete(port); else ports.add(port);
    if (data !== "bye" || !ports.size) open();
  };
};
