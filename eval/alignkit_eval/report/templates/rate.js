"use strict";
// One pair at a time; choices are kept in this browser under the page's own digest.
const pairs = [...document.querySelectorAll(".pair")];
const store = `alignkit-rate-${document.body.dataset.page}`;
const keys = { 1: "left", 2: "right", 0: "tie", s: "skip" };
let choices = {};
try {
  choices = JSON.parse(localStorage.getItem(store)) ?? {};
} catch {
  choices = {}; // no storage here, or not ours: ratings last as long as the page
}
let current = 0;

function show(position) {
  current = position;
  pairs.forEach((pair, i) => (pair.hidden = i !== current));
  document.getElementById("done").hidden = current < pairs.length;
  document.getElementById("progress").value = `${Object.keys(choices).length} of ${pairs.length} rated`;
}

function next() {
  const open = pairs.findIndex((pair) => !(pair.dataset.pair in choices));
  show(open === -1 ? pairs.length : open);
}

function choose(choice) {
  if (current >= pairs.length) return;
  choices[pairs[current].dataset.pair] = choice;
  try {
    localStorage.setItem(store, JSON.stringify(choices));
  } catch {
    // kept in memory alone
  }
  next();
}

function csv() {
  return ["pair,choice", ...Object.entries(choices).map(([pair, choice]) => `${pair},${choice}`)].join("\n") + "\n";
}

for (const button of document.querySelectorAll(".choices button")) button.addEventListener("click", () => choose(button.value));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in keys) choose(keys[event.key]);
  if (event.key === "b") show(Math.max(0, current - 1));
});
document.getElementById("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = "ratings.csv";
  link.click();
  URL.revokeObjectURL(link.href);
});
next();
