// What the pages of both recipes do with what they hear.

// Show what one way in says, at the end of the list.
function show(way, text) {
  const item = document.createElement("li");
  item.textContent = `${way}: ${text}`;
  document.getElementById("heard").append(item);
}

// Hear the channel by an SDK's client.
function follow(centrifuge, way) {
  const subscription = centrifuge.newSubscription("news");
  subscription.on("publication", ({ data }) => show(way, data));
  subscription.on("subscribed", () => show(way, "subscribed"));
  centrifuge.on("connected", ({ transport }) => show(way, `connected by ${transport}`));
  centrifuge.on("disconnected", ({ reason }) => show(way, `disconnected: ${reason}`));
  subscription.subscribe();
  centrifuge.connect();
}

// Hear the channel by an EventSource. A browser comes back by itself after a connection that was lost, but not
// after a refusal, as 401 for a token that has expired: then `open` gets another one, and the stream goes
// on behind the last event that was heard.
async function listen(way, open, lastEventId = "") {
  const again = () => setTimeout(listen, 1000 + 2000 * Math.random(), way, open, lastEventId);
  try {
    const events = await open(lastEventId ? { lastEventId } : {});
    events.onopen = () => show(way, "open");
    events.onmessage = (event) => {
      lastEventId = event.lastEventId;
      show(way, JSON.parse(event.data));
    };
    events.onerror = () => {
      if (events.readyState === EventSource.CLOSED) again();
    };
  } catch {
    again();
  }
}
