// Rows sort by the column of a heading, numbers as numbers and what is missing always last.
const numberIn = (text) => {
  const found = /^[+-]?[\d,]*\.?\d+(e[+-]?\d+)?/i.exec(text);
  return found ? Number(found[0].replaceAll(",", "")) : null;
};

function sortBy(table, heading) {
  const column = [...heading.parentNode.children].indexOf(heading);
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: row.cells[column].textContent.trim() }));
  const given = rows.filter(({ text }) => text !== "-");
  const numeric = given.every(({ text }) => numberIn(text) !== null);
  // Of figures one wants the largest first, of names the alphabet.
  const first = numeric && column > 0 ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const direction = heading.getAttribute("aria-sort") === first ? other : first;
  const sign = direction === "ascending" ? 1 : -1;
  const compare = (a, b) =>
    numeric ? numberIn(a.text) - numberIn(b.text) : a.text.localeCompare(b.text, "en", { numeric: true });
  given.sort((a, b) => sign * compare(a, b));
  const missing = rows.filter(({ text }) => text === "-");
  table.tBodies[0].append(...[...given, ...missing].map(({ row }) => row));
  for (const one of heading.parentNode.children) one.setAttribute("aria-sort", one === heading ? direction : "none");
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.querySelectorAll("th[aria-sort]")) {
    heading.querySelector("button").addEventListener("click", () => sortBy(table, heading));
  }
}

for (const field of document.querySelectorAll("input[data-filter]")) {
  const rows = document.getElementById(field.dataset.filter).tBodies[0].rows;
  const said = document.querySelector(`output[for="${field.id}"]`);
  const apply = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    said.textContent = `${shown} of ${rows.length} rows`;
  };
  field.addEventListener("input", apply);
  apply();
}
