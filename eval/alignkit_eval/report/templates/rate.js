"use strict";
// Shows one pair at a time; choices are stored in this browser under the page's hash.
const page = document.body.dataset.page;
const pairs = [...document.querySelectorAll(".pair")];
const done = document.getElementById("done");
const store = `alignkit-rate-${page}`;
const keys = { a: "a", 1: "a", b: "b", 2: "b", t: "tie", 0: "tie", s: "skip" };
let choices = {};
try {
  choices = JSON.parse(localStorage.getItem(store)) ?? {};
} catch {
  choices = {}; // no storage, or invalid content: ratings last as long as the page is open
}
let current = 0;

function show(position) {
  current = position;
  pairs.forEach((pair, i) => (pair.hidden = i !== current));
  done.hidden = current < pairs.length;
  for (const button of pairs[current]?.querySelectorAll("button") ?? [])
    button.setAttribute("aria-pressed", choices[pairs[current].dataset.pair] === button.value);
  document.getElementById("progress").value = `${Object.keys(choices).length} of ${pairs.length} rated`;
}

function firstOpen() {
  const open = pairs.findIndex((pair) => !(pair.dataset.pair in choices));
  return open === -1 ? pairs.length : open;
}

// Move the focus to the new pair, for screen readers and keyboard users.
function go(position) {
  show(position);
  const place = pairs[current] ?? done;
  place.focus({ preventScroll: true });
  place.scrollIntoView({ block: "nearest" });
}

function choose(choice) {
  if (current >= pairs.length) return;
  choices[pairs[current].dataset.pair] = choice;
  try {
    localStorage.setItem(store, JSON.stringify(choices));
  } catch {
    // kept in memory only
  }
  go(firstOpen());
}

function csv() {
  return ["pair,choice,page", ...Object.entries(choices).map(([pair, choice]) => `${pair},${choice},${page}`)].join("\n") + "\n";
}

for (const group of document.querySelectorAll(".tools, .choices")) group.hidden = false; // only usable with this script
for (const button of document.querySelectorAll(".choices button")) button.addEventListener("click", () => choose(button.value));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (Object.hasOwn(keys, key)) choose(keys[key]);
  if (key === "arrowleft") go(Math.max(0, current - 1));
});
document.getElementById("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = "ratings.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
show(firstOpen());
