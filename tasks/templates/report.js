"use strict";

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => sort(table, headings, column));
  });
}

// numbers fall first, as the largest is looked for; words rise
function sort(table, headings, column) {
  const rows = [...table.tBodies[0].rows];
  const values = new Map(rows.map((row) => [row, row.cells[column].dataset.value]));
  const numeric = rows.every((row) => values.get(row) !== "" && !isNaN(values.get(row)));
  const before = headings[column].getAttribute("aria-sort");
  const descending = before ? before === "ascending" : numeric;
  const compare = numeric
    ? (a, b) => values.get(a) - values.get(b)
    : (a, b) => values.get(a).localeCompare(values.get(b));
  rows.sort((a, b) => (descending ? compare(b, a) : compare(a, b)));
  table.tBodies[0].append(...rows);
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
}

const mistakes = document.getElementById("mistakes-table");
if (mistakes) {
  const [search, model, set] = ["search", "of-model", "of-set"].map((id) => document.getElementById(id));
  const rows = [...mistakes.tBodies[0].rows];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      row.hidden = Boolean(
        (model.value && row.dataset.model !== model.value) ||
        (set.value && row.dataset.set !== set.value) ||
        !words.every((word) => texts.get(row).includes(word))
      );
      shown += !row.hidden;
    }
    document.getElementById("found").textContent = `${shown} of ${rows.length} shown`;
  };
  for (const control of [search, model, set]) control.addEventListener("input", filter);
  filter();
}
