// Two domains: the page gets a token from its own application, and shows it to Repeater.

const { realtime } = document.documentElement.dataset;  // "https://realtime.example.com"

async function getToken() {
  const answer = await fetch("/token", { cache: "no-store" });
  if (answer.status === 401) throw new Centrifuge.UnauthorizedError("not signed in");  // the SDK gives up
  if (!answer.ok) throw new Error(`/token: ${answer.status}`);  // the SDK tries again
  return (await answer.json()).token;
}

// The SDK calls getToken to connect, and again before the token expires: its connection goes on.
const socket = `${realtime.replace("http", "ws")}/connection/websocket`;
follow(new Centrifuge(socket, { getToken }), "sdk");

// An EventSource has no headers: its token is in the address, and so perhaps in a proxy's log.
listen("events", async (more) => {
  const query = new URLSearchParams({ channel: "news", token: await getToken(), ...more });
  return new EventSource(`${realtime}/events?${query}`);
});

// Two names of one site, www.example.com and realtime.example.com, may share a cookie: /token sets
// `repeater_token` with Domain=example.com, and no address has a token.
listen("events with a cookie", async (more) => {
  await getToken();
  const query = new URLSearchParams({ channel: "news", ...more });
  return new EventSource(`${realtime}/events?${query}`, { withCredentials: true });
});
