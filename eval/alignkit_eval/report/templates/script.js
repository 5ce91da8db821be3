"use strict";
// Sorting and filters; the page is readable without them. Page data is never turned into markup here.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = now === null ? "ascending" : now === "ascending" ? "descending" : null;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      const rows = [...original];
      if (next !== null) {
        head.setAttribute("aria-sort", next);
        rows.sort((a, b) => compare(a.cells[column], b.cells[column], next === "ascending" ? 1 : -1));
      }
      body.append(...rows);
    });
  });
}

// Numbers come before cells without one (a dash), in either direction.
function compare(a, b, sign) {
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x !== undefined && y !== undefined) return sign * (Number(x) - Number(y));
  if (x !== undefined || y !== undefined) return x !== undefined ? -1 : 1;
  return sign * a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
}

for (const filter of document.querySelectorAll(".filter")) {
  const section = filter.parentElement;
  const entries = [...section.querySelectorAll(".generation, .item")];
  const groups = [...section.querySelectorAll(".group")];
  const texts = entries.map((entry) => entry.textContent.toLowerCase());
  const input = filter.querySelector("input");
  const output = filter.querySelector("output");
  filter.hidden = false;
  output.value = `${entries.length} shown`;
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    entries.forEach((entry, i) => {
      entry.hidden = !wanted.every((word) => texts[i].includes(word));
      shown += !entry.hidden;
    });
    if (wanted.length) for (const group of groups) group.open = group.querySelector(".item:not([hidden])") !== null;
    output.value = wanted.length ? `${shown} of ${entries.length}` : `${entries.length} shown`;
  });
}

// A link to a folded section unfolds it.
function unfold() {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (target) for (const fold of target.querySelectorAll(":scope > .fold")) fold.open = true;
}
addEventListener("hashchange", unfold);
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => setTimeout(unfold));
unfold();

// What is folded is expanded for printing.
const facts = [...document.querySelectorAll(".fact, .fold, .more")];
let folded = [];
addEventListener("beforeprint", () => {
  folded = facts.filter((fact) => !fact.open);
  for (const fact of folded) fact.open = true;
});
addEventListener("afterprint", () => {
  for (const fact of folded) fact.open = false;
});
