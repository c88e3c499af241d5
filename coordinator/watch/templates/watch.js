// Replace a panel when the server sends its new content. Nothing accumulates: a panel holds what it was sent last.
"use strict";
const SPOKEN_MS = 30000; // between two readings aloud of the same state
const RETRY_MS = 5000; // after an answer that is no stream
const SILENT_MS = 90000; // six pings of the server, which has a low priority; longer: the connection is dead, though nobody has said so
const HIDDEN_MS = 60000; // a page in the background lets go then: a browser opens six connections to a host
const link = document.getElementById("link");
const updated = document.getElementById("updated");
const filter = document.getElementById("filter");
let source = null; // the connection
let ended = false; // the server has said that it ends
let heard = 0; // when it was last heard, ms
let timer = 0;

function showLink(text, state) {
  link.textContent = text;
  link.className = state;
}

function applyFilter() {
  const wanted = filter.value.toLowerCase();
  const lines = [...document.querySelectorAll("#log-panel li")];
  for (const line of lines) line.hidden = !line.textContent.toLowerCase().includes(wanted);
  const matches = wanted ? `${lines.filter((line) => !line.hidden).length} of ${lines.length}` : "";
  const shown = document.getElementById("matches");
  if (shown.textContent !== matches) shown.textContent = matches;
}

// What a reader was doing inside a panel outlives its replacement: focus, scrolling, opened details.
function replace(panel, html) {
  const kept = "[tabindex], summary, a";
  const index = [...panel.querySelectorAll(kept)].indexOf(document.activeElement);
  const scrolled = [...panel.querySelectorAll("[tabindex]")].map((one) => [one.scrollLeft, one.scrollTop]);
  const open = [...panel.querySelectorAll("details")].map((one) => one.open);
  panel.innerHTML = html;
  panel.querySelectorAll("details").forEach((one, i) => { one.open = open[i] ?? false; });
  panel.querySelectorAll("[tabindex]").forEach((one, i) => { [one.scrollLeft, one.scrollTop] = scrolled[i] ?? [0, 0]; });
  if (index >= 0) panel.querySelectorAll(kept)[index]?.focus({ preventScroll: true });
}

// A screen reader is told when the stage or its end changes, and else every half minute, not every second.
let spoken = { about: "", at: 0 };
function speak(text) {
  const about = text.replace(/[\d:%.]+/g, "");
  if (about === spoken.about && Date.now() - spoken.at < SPOKEN_MS) return;
  spoken = { about, at: Date.now() };
  document.getElementById("spoken").textContent = text;
}

function show(panels) {
  for (const [name, html] of Object.entries(panels)) {
    if (name === "title") document.title = new DOMParser().parseFromString(html, "text/html").body.textContent.trim();
    const panel = document.getElementById(`${name}-panel`);
    if (panel) replace(panel, html);
    if (name === "log") applyFilter();
    if (name === "summary") speak(panel.textContent.trim());
  }
  updated.textContent = `· newest change ${new Date().toISOString().slice(11, 19)} UTC`;
}

function later() {
  clearTimeout(timer);
  timer = setTimeout(connect, RETRY_MS);
}

// A stream that was refused says no reason; another path of the same server does.
async function refused() {
  let text = "connection lost: trying again";
  try {
    const answer = await fetch("status.json");
    if (answer.status === 403) text = "the token is no longer right: open the address that the command printed last";
    else if (answer.ok) text = "too many pages are open: trying again";
    else text = (await answer.text()).trim();
  } catch { /* no server is there */ }
  if (!source) showLink(text, "lost");
  later();
}

function disconnect() {
  source?.close();
  source = null;
}

function connect() {
  if (source || ended || document.hidden) return;
  heard = Date.now();
  source = new EventSource("events");
  source.onopen = () => { heard = Date.now(); showLink("connected", ""); };
  source.onerror = () => {
    if (source?.readyState === EventSource.CLOSED) { disconnect(); refused(); } else showLink("connection lost: trying again", "lost");
  };
  source.onmessage = (event) => { heard = Date.now(); show(JSON.parse(event.data)); };
  source.addEventListener("ping", () => { heard = Date.now(); });
  source.addEventListener("end", () => {
    ended = true;
    disconnect();
    showLink("the server of this page has ended: this is how it was last; `coordinator watch` shows it again", "lost");
    updated.textContent = "";
  });
}

setInterval(() => {
  if (source && Date.now() - heard > SILENT_MS) { disconnect(); showLink("connection lost: trying again", "lost"); connect(); }
}, RETRY_MS);
let hiding = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(() => { disconnect(); showLink("paused in the background", ""); }, HIDDEN_MS);
  else connect();
});
filter.addEventListener("input", applyFilter);
connect();
