// Watch channels and publish to them.
//
// Every text goes into the page as text (textContent), never as markup. Messages over /ws and
// /events are the bare data and do not name their channel, so each channel has a connection of its
// own. Everything that grows has a bound: the list, the rows that wait for the next frame or for
// the end of a pause, and the publications whose arrival is being timed.

const ROWS = 200;                      // messages shown, and messages waiting to be; the oldest go first
const LONG = 4000;                     // characters of a message shown before a click on "Show all"
const WIDE = 64;                       // characters of JSON that stay on one line
const MOST = { websocket: 50, sse: 4 };  // channels; a browser has six HTTP/1.1 connections per server
const PAUSES = [300, 5000];            // milliseconds before the first and the slowest new attempt
const PATIENCE = 10000;                // milliseconds for an answer, and for a publication to arrive
const SAMPLES = 100;                   // latencies of which the median is shown

const TINTS = 6;                       // colours in the style sheet

const NAMES = { live: "Connected", connecting: "Connecting", lost: "Connection lost", refused: "Refused" };

const find = (id) => document.getElementById(id);
const make = (tag, kind, text) => {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
};

// What a binary channel brings: its length and its first bytes.
const inHex = (data) => {
  const bytes = [...new Uint8Array(data, 0, Math.min(data.byteLength, 64))];
  const hex = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return `${data.byteLength} bytes: ${hex}${data.byteLength > 64 ? " \u2026" : ""}`;
};

// ---- one channel's connection, by either transport

const ways = {
  websocket(channel, on) {
    const address = new URL(`ws?channel=${encodeURIComponent(channel)}`, location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    socket.onopen = on.open;
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => on.message(typeof data === "string" ? data : inHex(data));
    socket.onclose = ({ code, reason }) => on.end(code === 1006 ? "" : `${reason || "closed"} (${code})`);
    return () => { socket.onopen = socket.onmessage = socket.onclose = null; socket.close(); };
  },

  // The browser reconnects by itself and recovers missed messages, unless the server refused.
  sse(channel, on) {
    const events = new EventSource(`events?channel=${encodeURIComponent(channel)}`);
    events.onopen = on.open;
    events.onmessage = (event) => on.message(event.data);
    events.onerror = () => (events.readyState === EventSource.CLOSED ? on.end("") : on.wait());
    events.addEventListener("reset", () => on.note("was away for too long: some messages are lost"));
    events.addEventListener("disconnect", (event) => {
      const { code, reason } = JSON.parse(event.data);
      on.note(`${reason} (${code})`);
      if (Math.floor(code / 500) % 2) { events.close(); on.end(`${reason} (${code})`); }
    });
    return () => events.close();
  },
};

let made = 0;

class Subscription {
  constructor(channel) {
    this.channel = channel;
    this.tint = made++ % TINTS;
    this.messages = 0;
    this.pause = PAUSES[0];
    this.element = make("li");
    this.dot = make("span", "dot");
    this.why = make("span", "why");
    this.count = make("span", "count", "0");
    const who = make("span", "who");
    const remove = make("button", "", "\u00d7");
    remove.type = "button";
    remove.setAttribute("aria-label", `Unsubscribe from ${channel}`);
    remove.addEventListener("click", () => { unsubscribe(this); find("channel").focus(); });
    const name = make("span", `name t${this.tint}`, channel);
    name.title = channel;
    who.append(name, this.why);
    this.element.append(this.dot, who, this.count, remove);
    this.open();
  }

  open() {
    let opened = false;
    if (this.state !== "refused") this.tell("connecting");  // a repeated attempt would make it flicker
    this.cut = ways[transport](this.channel, {
      open: () => { opened = true; this.pause = PAUSES[0]; this.tell("live"); },
      wait: () => this.tell("connecting"),
      message: (text) => { this.messages += 1; arrived(this, text); },
      note: (text) => note(this, text),
      end: (reason) => this.ended(opened, reason),
    });
  }

  async ended(opened, reason) {
    if (reason) note(this, reason);
    if (opened || this.state !== "refused") this.tell("lost", reason);
    const again = this.again = setTimeout(() => this.open(), this.pause * (0.5 + Math.random()));
    this.pause = Math.min(PAUSES[1], this.pause * 1.7);
    if (opened) return;
    // The browser gives the same error for a refusal and for an unreachable server.
    const there = await isThere();
    if (again !== this.again || this.state === "connecting" || this.state === "live") return;
    if (there) this.tell("refused", `The server refuses ${transport === "sse" ? "an event stream" : "a WebSocket"} for this channel.`);
    else this.tell("lost");
  }

  close() {
    clearTimeout(this.again);
    this.again = null;
    this.state = null;
    this.cut();
  }

  tell(state, why = "") {
    this.state = this.element.dataset.state = state;
    this.element.title = NAMES[state];
    this.why.textContent = why;
    summarize();
  }
}

async function isThere() {
  try {
    return (await fetch("health/live", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) })).ok;
  } catch {
    return false;
  }
}

// ---- the channels, which are kept in the page's address

const subscriptions = new Map();  // by channel
let transport = "websocket";

find("subscribe").addEventListener("submit", (event) => {
  event.preventDefault();
  const channel = find("channel").value.trim();
  if (!channel || !subscribe(channel)) return;
  find("channel").value = "";
  find("to").value = channel;
  sketch();
});

for (const choice of document.querySelectorAll("[name=transport]")) {
  choice.addEventListener("change", () => change(choice.value));
}

function subscribe(channel) {
  find("subscribe-problem").textContent = "";
  if (subscriptions.has(channel)) return true;
  if (subscriptions.size >= MOST[transport]) {
    find("subscribe-problem").textContent = tooMany(transport);
    return false;
  }
  const subscription = new Subscription(channel);
  subscriptions.set(channel, subscription);
  find("channels").append(subscription.element);
  remember();
  return true;
}

function unsubscribe(subscription) {
  subscription.close();
  subscription.element.remove();
  subscriptions.delete(subscription.channel);
  find("subscribe-problem").textContent = "";
  remember();
}

function change(chosen) {
  const fits = subscriptions.size <= MOST[chosen];
  find("subscribe-problem").textContent = fits ? "" : tooMany(chosen);
  if (fits) transport = chosen;
  document.querySelector(`[name=transport][value=${transport}]`).checked = true;
  if (!fits) return;
  for (const subscription of subscriptions.values()) {
    subscription.close();
    subscription.pause = PAUSES[0];
    subscription.open();
  }
  remember();
}

function tooMany(chosen) {
  const why = chosen === "sse" ? ": each holds one of the few connections that a browser opens to a server" : "";
  return `At most ${MOST[chosen]} channels here${why}.`;
}

function remember() {
  const query = new URLSearchParams([...subscriptions.keys()].map((channel) => ["channel", channel]));
  if (transport === "sse") query.append("transport", "sse");
  history.replaceState(null, "", `${location.pathname}?${query}`);
  find("known").replaceChildren(...[...subscriptions.keys()].map((channel) => {
    const option = make("option");
    option.value = channel;
    return option;
  }));
  summarize();
}

function summarize() {
  const states = [...subscriptions.values()].map((one) => one.state);
  const worst = ["refused", "lost", "connecting", "live"].find((state) => states.includes(state)) ?? "idle";
  const place = find("state");
  place.dataset.state = worst;
  const text = NAMES[worst] ?? "Not connected";
  if (place.textContent !== text) place.textContent = text;  // a screen reader reads every change
}

// ---- messages that arrive

const timed = [];      // own publications that have not arrived: { key, at }
const latencies = [];  // milliseconds
let waiting = [];      // rows for the next frame, oldest first
let paused = false;
let drawing = false;
let messages = 0;
let bytes = 0;
let before = 0;        // messages a second ago

const size = ((encoder) => (text) => encoder.encode(text).length)(new TextEncoder());

function arrived(subscription, text) {
  const now = performance.now();
  const length = size(text);
  messages += 1;
  bytes += length;
  const latency = timed.length ? ownLatency(`${subscription.channel}\n${compact(text)}`, now) : null;
  enqueue({ subscription, text, length, latency, date: new Date() });
}

// An own publication is recognised by channel and content; of two equal ones the older is first.
function ownLatency(key, now) {
  const place = timed.findIndex((one) => one.key === key);
  if (place < 0) return null;
  const latency = now - timed.splice(place, 1)[0].at;
  latencies.push(latency);
  if (latencies.length > SAMPLES) latencies.shift();
  return latency;
}

function note(subscription, text) {
  enqueue({ subscription, note: text });
}

function enqueue(row) {
  waiting.push(row);
  if (waiting.length > ROWS) waiting.shift();
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(draw);
}

function draw() {
  drawing = false;
  count();
  if (paused || !waiting.length) return;
  const list = find("messages");
  const rows = waiting.reverse().map(element);
  waiting = [];
  list.prepend(...rows);
  while (list.children.length > ROWS) list.lastElementChild.remove();
  find("nothing").hidden = true;
}

function element(row) {
  const { subscription, text, length, latency, date } = row;
  if (row.note !== undefined) return make("li", "note", `${subscription.channel}: ${row.note}`);
  const item = make("li", `fresh t${subscription.tint}`);
  const head = make("header");
  const when = make("time", "", clock(date));
  when.dateTime = date.toISOString();
  head.append(make("strong", "", subscription.channel), when, make("span", "", inBytes(length)));
  if (latency !== null) head.append(make("span", "own", `own \u00b7 ${inMilliseconds(latency)}`));
  const body = make("pre");
  item.append(head, body);
  if (text.length <= LONG) {
    body.append(...pretty(text));
  } else {
    body.textContent = `${text.slice(0, LONG)}\u2026`;
    const all = make("button", "quiet", `Show all ${inBytes(length)}`);
    all.type = "button";
    all.addEventListener("click", () => { body.replaceChildren(...pretty(text)); all.remove(); find("messages").focus(); });
    item.append(all);
  }
  return item;
}

function count() {
  find("messages-count").textContent = messages.toLocaleString("en");
  find("received").textContent = inBytes(bytes);
  find("latency").textContent = latencies.length ? inMilliseconds(latencies.at(-1)) : "\u2013";
  find("median").textContent = latencies.length ? inMilliseconds(median(latencies)) : "\u2013";
  for (const one of subscriptions.values()) one.count.textContent = one.messages.toLocaleString("en");
  find("pause").textContent = paused ? `Resume${waiting.length ? ` (${waiting.length}${waiting.length === ROWS ? "+" : ""})` : ""}` : "Pause";
  find("kept").textContent = messages > ROWS ? `the newest ${ROWS}` : "";
}

setInterval(() => {
  find("rate").textContent = (messages - before).toLocaleString("en");
  before = messages;
}, 1000);

find("pause").addEventListener("click", () => {
  paused = !paused;
  find("pause").setAttribute("aria-pressed", String(paused));
  draw();
});

find("clear").addEventListener("click", () => {
  find("messages").replaceChildren();
  find("nothing").hidden = false;
  waiting = [];
  latencies.length = messages = bytes = before = 0;
  for (const one of subscriptions.values()) one.messages = 0;
  count();
});

// ---- publishing

find("publish").addEventListener("submit", (event) => {
  event.preventDefault();
  publish(find("to").value.trim(), find("data").value.trim());
});
find("publish").addEventListener("input", sketch);
find("data").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    find("publish").requestSubmit();
  }
});

// The data is sent as typed: parsing and writing it again would change long numbers.
const command = (channel, text) => `{"channel": ${JSON.stringify(channel)}, "data": ${text}}`;

async function publish(channel, text) {
  try {
    JSON.parse(text);
  } catch (error) {
    outcome(`Not JSON: ${error.message}`, true);
    find("data").focus();
    return;
  }
  const one = { key: `${channel}\n${compact(text)}`, at: performance.now() };
  if (subscriptions.has(channel)) {
    timed.push(one);
    setTimeout(forget, PATIENCE, one);
  }
  try {
    const answer = await fetch("api/publish", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: command(channel, text),
      signal: AbortSignal.timeout(PATIENCE),
    });
    const { result, error } = await answer.json().catch(() => ({}));
    if (!answer.ok || error) throw new Error(error ? `${error.message} (${error.code})` : `HTTP ${answer.status}`);
    const took = inMilliseconds(performance.now() - one.at);
    const offset = result?.offset ? `, offset ${result.offset}` : "";
    outcome(`Published to ${channel}${offset}, answered in ${took}.`, false);
  } catch (error) {
    forget(one);
    outcome(error instanceof TypeError ? "The server cannot be reached." : `Not published: ${error.message}`, true);
  }
}

function forget(one) {
  const place = timed.indexOf(one);
  if (place >= 0) timed.splice(place, 1);
}

function outcome(text, bad) {
  find("outcome").className = bad ? "problem" : "";
  find("outcome").textContent = text;
}

function sketch() {
  const quoted = command(find("to").value.trim(), find("data").value.trim()).replaceAll("'", "'\\''");
  find("curl").textContent = `curl -d '${quoted}' ${new URL("api/publish", location.href)}`;
}

// ---- JSON as received: its own tokens, laid out and coloured

const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\]:,]|[^\s{}[\]:,"]+/g;

function compact(text) {
  return (text.match(TOKENS) ?? []).join("");
}

function pretty(text) {
  try {
    JSON.parse(text);
  } catch {
    return [text];
  }
  const tokens = text.match(TOKENS);
  const ends = closings(tokens);
  const open = [];  // for each container around the token: whether it is on one line
  const parts = [];
  const wrap = () => (open.at(-1) ? " " : `\n${"  ".repeat(open.length)}`);
  tokens.forEach((token, place) => {
    const empty = ends[place] === place + 1;
    if (token === "{" || token === "[") {
      open.push(empty || tokens.slice(place, Math.min(ends[place] + 1, place + WIDE)).join(" ").length <= WIDE);
      parts.push(token, empty || open.at(-1) ? "" : wrap());
    } else if (token === "}" || token === "]") {
      const flat = open.pop();
      parts.push(flat ? token : `\n${"  ".repeat(open.length)}${token}`);
    } else if (token === ",") {
      parts.push(",", wrap());
    } else if (token === ":") {
      parts.push(": ");
    } else {
      parts.push(make("span", kind(token, tokens[place + 1]), token));
    }
  });
  return parts;
}

// For each opening bracket: the index of its closing bracket.
function closings(tokens) {
  const ends = [];
  const open = [];
  tokens.forEach((token, place) => {
    if (token === "{" || token === "[") open.push(place);
    else if (token === "}" || token === "]") ends[open.pop()] = place;
  });
  return ends;
}

function kind(token, next) {
  if (token.startsWith('"')) return next === ":" ? "key" : "string";
  return /^[-\d]/.test(token) ? "number" : "word";
}

// ---- quantities

function clock(date) {
  const two = (number) => String(number).padStart(2, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

function inBytes(count) {
  if (count < 1000) return `${count} B`;
  return count < 1e6 ? `${(count / 1e3).toFixed(1)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

function inMilliseconds(value) {
  return `${value.toFixed(value < 100 ? 1 : 0)} ms`;
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

// ---- start

const query = new URLSearchParams(location.search);
if (query.get("transport") === "sse") change("sse");
const channels = new Set(query.getAll("channel").filter(Boolean));
for (const channel of channels.size || location.search ? channels : ["news"]) subscribe(channel);
sketch();
