// Runs once for all tabs of a browser: reads the one stream and hands every live frame to every tab, and those of a reply
// to the tabs that show it. A tab that comes, or has missed something, is given a fresh start by opening the stream anew:
// it begins with all there is.
"use strict";
const ports = new Map(); // port -> the tab behind it: what its page calls itself, and which reply it shows
let source = null;
let retry = 0;

const tell = (message) => { for (const port of ports.keys()) port.postMessage(message); };

const tellReply = (reply) => {
  for (const [port, { shown }] of ports) {
    if (reply.number === shown) port.postMessage({ reply });
    else if (reply.ended) port.postMessage({ reply: { number: reply.number, ended: true } });
  }
};

const open = () => {
  clearTimeout(retry);
  if (source) source.close();
  if (!ports.size) { source = null; return; }
  const address = new URL("frames", self.location.href);
  for (const { page } of ports.values()) address.searchParams.append("page", page);
  source = new EventSource(address);
  source.onopen = () => tell({ connected: true });
  source.onmessage = (event) => tell({ frame: event.data });
  source.addEventListener("host", (event) => tell({ host: event.data }));
  source.addEventListener("comparison", (event) => tell({ name: "comparison", data: event.data }));
  source.addEventListener("reply", (event) => tellReply(JSON.parse(event.data)));
  source.onerror = () => {
    tell({ connected: false });
    if (source.readyState === EventSource.CLOSED) retry = setTimeout(open, 3000); // else the browser tries again itself
  };
};

self.onconnect = (event) => {
  const [port] = event.ports;
  port.onmessage = ({ data }) => {
    if (data.hello) { ports.set(port, { page: data.hello, shown: data.shown }); open(); }
    else if (data.bye) { ports.delete(port); if (!ports.size) open(); }
    else if (ports.has(port)) ports.get(port).shown = data.shown;
  };
};
