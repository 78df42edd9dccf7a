// One domain: the browser shows Repeater the application's cookies by itself.

const { realtime } = document.documentElement.dataset;  // "/realtime"; "" without a path_prefix

const socket = new URL(`${realtime}/connection/websocket`, location.href);
socket.protocol = socket.protocol.replace("http", "ws");
const centrifuge = new Centrifuge([
  { transport: "websocket", endpoint: socket.href },
  { transport: "http_stream", endpoint: `${realtime}/connection/http_stream` },
  { transport: "sse", endpoint: `${realtime}/connection/sse` },
], { emulationEndpoint: `${realtime}/emulation` });
follow(centrifuge, "sdk");

// /token renews the cookie `repeater_token`: an EventSource shows it, and nothing else.
listen("events", async (more) => {
  await fetch("/token", { cache: "no-store" });
  return new EventSource(`${realtime}/events?${new URLSearchParams({ channel: "news", ...more })}`);
});
