"use strict";
// The page reads without this: sorting and filters only. Nothing of the page's data is ever made into markup here.
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
        const sign = next === "ascending" ? 1 : -1;
        rows.sort((a, b) => sign * compare(a.cells[column], b.cells[column]));
      }
      body.append(...rows);
    });
  });
}

// Numbers come before words, and words without a number (a dash) last.
function compare(a, b) {
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x !== undefined && y !== undefined) return Number(x) - Number(y);
  if (x !== undefined || y !== undefined) return x !== undefined ? -1 : 1;
  return a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
}

for (const filter of document.querySelectorAll(".filter")) {
  const entries = [...filter.parentElement.querySelectorAll(".generation, .item")];
  const texts = entries.map((entry) => entry.textContent.toLowerCase());
  const input = filter.querySelector("input");
  const output = filter.querySelector("output");
  filter.hidden = false;
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    entries.forEach((entry, i) => {
      entry.hidden = !wanted.every((word) => texts[i].includes(word));
      shown += !entry.hidden;
    });
    output.value = wanted.length ? `${shown} of ${entries.length}` : "";
  });
}
