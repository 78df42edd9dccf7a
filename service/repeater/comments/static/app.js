// Forms without a page load, and the live list.
//
// Every text goes into the page as text (textContent), never as markup. Two rules keep the list
// complete: subscribe first and then read the list, and never show an id twice. So a comment that
// was written while the page was offline is in the list, and a comment that comes twice shows once.

const PAGE = 500;            // comments in one answer of the server, at most
const PAUSES = [300, 5000];  // milliseconds before a new attempt: the first pause, and the longest
const CHECK = 20000;         // milliseconds between two checks that the connection still delivers
const LOST = 10;             // most answers to read to close a gap

const find = (id) => document.getElementById(id);

// ---- forms: every form of every page, by its action and data-next

for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form);
  });
}

async function send(form) {
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const answer = await fetch(form.action, {
      method: "POST",
      headers: { Accept: "application/json" },
      body: new URLSearchParams(new FormData(form)),
      redirect: "manual",  // data-next has the next page already
    });
    if (answer.type === "opaqueredirect") {
      succeed(form);
    } else {
      explain(form, (await answer.json().catch(() => ({}))).error || "Something went wrong. Try again.");
    }
  } catch {
    explain(form, "The server cannot be reached. Try again in a moment.");
  } finally {
    button.disabled = false;
  }
}

function succeed(form) {
  explain(form, "");
  if (form.dataset.next) {
    location.assign(form.dataset.next);
    return;
  }
  form.reset();
  form.dispatchEvent(new Event("posted"));
}

function explain(form, text) {
  form.classList.add("answered");  // hides the message that the address names
  const place = form.querySelector("[data-problem]");
  if (!place) return;
  place.hidden = !text;
  place.textContent = text;
}

// ---- the live list

const list = find("comments");
const shown = new Set();  // ids
let me = null;

if (list) {
  const composer = find("composer");
  composer.addEventListener("posted", () => { catchUp().catch(() => {}); toEnd(); find("text").focus(); count(); });
  find("text").addEventListener("input", count);
  find("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      composer.requestSubmit();
    }
  });
  find("earlier").addEventListener("click", earlier);
  find("newer").addEventListener("click", toEnd);
  list.addEventListener("scroll", () => { if (atEnd()) find("newer").hidden = true; });
  whoAmI().finally(stayConnected);
}

async function whoAmI() {
  try {
    me = (await read("api/me")).user;
  } catch {
    return;  // the user is unknown: the next connection asks again
  }
  find("signed-in").hidden = find("composer").hidden = !me;
  find("signed-out").hidden = find("invitation").hidden = Boolean(me);
  find("me").textContent = me ? me.name : "";
}

async function read(address) {
  const answer = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return answer.json();
}

// One connection after the other, for as long as the page is open.
async function stayConnected() {
  let pause = PAUSES[0];
  for (;;) {
    tell("connecting", "Connecting");
    const wasLive = await connection();
    tell("lost", "Connection lost");
    if (shown.size === 0) await catchUp().catch(() => {});  // what is there needs no connection
    if (wasLive) pause = PAUSES[0];
    await interruptible(pause * (0.5 + Math.random()));
    pause = Math.min(PAUSES[1], pause * 1.7);
  }
}

// Run one connection to its end; resolves to whether it was ever live.
function connection() {
  return new Promise((resolve) => {
    const address = new URL("ws?channel=comments", location.href);  // beside this page, wherever it is
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    let live = false;
    const end = () => { socket.onclose = socket.onmessage = null; socket.close(); finish(); };
    const deaf = setInterval(() => isDeaf().then((yes) => yes && end(), end), CHECK);
    const late = setTimeout(end, 10000);
    const finish = () => {
      clearInterval(deaf);
      clearTimeout(late);
      removeEventListener("offline", end);
      resolve(live);
    };
    addEventListener("offline", end);
    socket.onclose = finish;
    socket.onmessage = (event) => show([JSON.parse(event.data)], true);
    socket.onopen = async () => {
      clearTimeout(late);
      try {
        if (!me) await whoAmI();
        await catchUp();
      } catch {
        return end();
      }
      if (socket.readyState !== WebSocket.OPEN) return;
      live = true;
      tell("live", "Live");
      list.setAttribute("aria-live", "polite");
    };
  });
}

// Whether the connection delivers nothing. A page cannot see the server's pings, so it looks for a
// comment that is in the list and did not come.
async function isDeaf() {
  const missing = async () => (await read("api/comments?limit=1")).find((one) => !shown.has(one.id));
  if (!(await missing())) return false;
  await new Promise((resolve) => setTimeout(resolve, 2000));  // it may be on its way
  return Boolean(await missing());
}

function interruptible(milliseconds) {
  return new Promise((resolve) => {
    const go = () => { removeEventListener("online", go); clearTimeout(timer); resolve(); };
    const timer = setTimeout(go, milliseconds);
    addEventListener("online", go);
  });
}

// Read the list back to the newest comment that is shown, so that none is missing.
async function catchUp() {
  const newest = Math.max(0, ...[...list.children].slice(-1).map((item) => Number(item.dataset.id)));
  let first = shown.size === 0;
  let page = await read(`api/comments?limit=${PAGE}`);
  let found = page;
  for (let n = 1; n < LOST && !first && page.length === PAGE && page[0].id > newest; n++) {
    page = await read(`api/comments?limit=${PAGE}&before=${page[0].id}`);
    found = page.concat(found);
  }
  if (!first && page.length === PAGE && page[0].id > newest) {  // too many are missing: start anew
    first = true;
    shown.clear();
    list.replaceChildren();
  }
  if (first) find("earlier").hidden = page.length < PAGE;
  show(found, !first);
  if (first) toEnd();
  find("nothing").hidden = shown.size > 0;
}

async function earlier() {
  const oldest = list.firstElementChild;
  const page = await read(`api/comments?limit=${PAGE}&before=${oldest.dataset.id}`);
  find("earlier").hidden = page.length < PAGE;
  const height = list.scrollHeight;
  show(page, false);
  list.scrollTop += list.scrollHeight - height;  // the comments in view stay in place
  list.focus();
}

// Insert comments in the order of ids. They come oldest first, so nearly all are inserted last.
function show(comments, fresh) {
  const follow = atEnd();
  let added = false;
  for (const comment of comments) {
    if (!Number.isInteger(comment?.id) || shown.has(comment.id)) continue;
    const item = element(comment, fresh);
    shown.add(comment.id);
    let before = list.lastElementChild;
    if (before && Number(list.firstElementChild.dataset.id) > comment.id) before = null;
    while (before && Number(before.dataset.id) > comment.id) before = before.previousElementSibling;
    if (before) before.after(item); else list.prepend(item);
    added = true;
  }
  if (!added) return;
  find("nothing").hidden = true;
  if (follow) toEnd(); else if (fresh) find("newer").hidden = false;
}

function element({ id, uid, name, text, at }, fresh) {
  const item = document.createElement("li");
  item.className = "comment";
  item.classList.toggle("mine", Boolean(me) && uid === me.uid);
  item.classList.toggle("fresh", fresh);
  item.dataset.id = id;
  const head = document.createElement("header");
  const who = document.createElement("strong");
  who.textContent = name ?? uid ?? "";
  const when = document.createElement("time");
  const date = new Date(at);
  if (!Number.isNaN(date.valueOf())) {
    when.dateTime = date.toISOString();
    when.textContent = date.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  }
  head.append(who, when);
  const words = document.createElement("p");
  words.textContent = text ?? "";
  item.append(head, words);
  return item;
}

function atEnd() {
  return list.scrollHeight - list.scrollTop - list.clientHeight < 60;
}

function toEnd() {
  list.scrollTop = list.scrollHeight;
  find("newer").hidden = true;
}

function tell(state, text) {
  find("state").dataset.state = state;
  find("state").textContent = text;
}

function count() {
  const left = find("text").maxLength - find("text").value.length;
  find("left").textContent = left < 300 ? `${left} characters left.` : "";
}
