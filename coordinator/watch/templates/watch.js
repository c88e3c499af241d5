// Replace a panel when the server sends its new content. Nothing accumulates: a panel holds what it was sent last.
"use strict";
const link = document.getElementById("link");
const filter = document.getElementById("filter");

function showLink(text, state) {
  link.textContent = text;
  link.className = `link ${state}`;
}

function applyFilter() {
  const wanted = filter.value.toLowerCase();
  const lines = [...document.querySelectorAll("#log-panel li")];
  for (const line of lines) line.hidden = !line.textContent.toLowerCase().includes(wanted);
  const matches = wanted ? `${lines.filter((line) => !line.hidden).length} of ${lines.length}` : "";
  document.getElementById("matches").textContent = matches;
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
const SPOKEN_MS = 30000;
let spoken = { about: "", at: 0 };
function speak(text) {
  const about = text.replace(/[\d:%.]+/g, "");
  if (about === spoken.about && Date.now() - spoken.at < SPOKEN_MS) return;
  spoken = { about, at: Date.now() };
  document.getElementById("spoken").textContent = text;
}

const source = new EventSource("events");
source.onopen = () => showLink("live", "live");
source.onerror = () => showLink("connection lost: trying again", "lost");
source.onmessage = (event) => {
  for (const [name, html] of Object.entries(JSON.parse(event.data))) {
    const panel = document.getElementById(name === "summary" ? "summary" : `${name}-panel`);
    if (panel) replace(panel, html);
    if (name === "log") applyFilter();
    if (name === "summary") speak(panel.textContent.trim());
  }
};
source.addEventListener("end", () => {
  source.close();
  showLink("the server of this page has ended: this is how it was last", "lost");
});
filter.addEventListener("input", applyFilter);
