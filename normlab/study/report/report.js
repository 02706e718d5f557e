"use strict";
// Without this the page reads as it is, everything shown. Headers of sortable tables become buttons, and controls show.

function key(row, column) {
  const cell = row.cells[column], text = cell.dataset.sort ?? cell.textContent.trim().replace("−", "-");
  return {text, number: text === "" || text === "–" ? NaN : Number(text)};
}

function compare(a, b, sign) {
  const known = x => x.text !== "" && x.text !== "–";
  if (known(a) !== known(b)) return known(a) ? -1 : 1; // unknown values last, whatever the direction
  const numeric = !Number.isNaN(a.number) && !Number.isNaN(b.number);
  return sign * (numeric ? a.number - b.number : a.text.localeCompare(b.text));
}

function sort(table, header, column) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0], rows = [...body.rows].map(row => ({row, key: key(row, column)}));
  rows.sort((a, b) => compare(a.key, b.key, descending ? -1 : 1));
  body.append(...rows.map(each => each.row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, header, column));
    header.append(button);
  });
}

function filter(form) {
  const wanted = [...form.elements].filter(field => field.name && field.value), table = form.nextElementSibling;
  const fits = (row, field) => field.name === "text"
    ? row.textContent.toLowerCase().includes(field.value.toLowerCase())
    : row.dataset[field.name] === field.value;
  for (const row of table.querySelectorAll("tbody tr")) {
    row.classList.toggle("filtered", !wanted.every(field => fits(row, field)));
  }
}

function count() {
  for (const form of document.querySelectorAll("form.filter")) {
    const rows = [...form.nextElementSibling.querySelectorAll("tbody tr")];
    const shown = rows.filter(row => getComputedStyle(row).display !== "none").length;
    form.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
  }
}

function toggle(box) {
  for (const element of document.querySelectorAll(`.${box.value}`)) element.classList.toggle(box.name, !box.checked);
}

for (const form of document.querySelectorAll("form.controls")) {
  form.hidden = false;
  form.addEventListener("submit", event => event.preventDefault());
}
for (const box of document.querySelectorAll(".toggles input")) {
  box.addEventListener("change", () => { toggle(box); count(); });
  toggle(box);
}
for (const form of document.querySelectorAll("form.filter")) {
  const update = () => { filter(form); count(); };
  for (const event of ["input", "change"]) form.addEventListener(event, update);
  form.addEventListener("reset", () => setTimeout(update));
  filter(form);
}
count();
