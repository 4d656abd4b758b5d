"use strict";
// Tables: a click on a heading sorts by it, a text in the field keeps the rows that hold it.
for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead button").forEach((button, column) => {
    const heading = button.closest("th");
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const of = (row) => row.cells[column];
      const rows = [...body.rows];
      const compare = (a, b) => {
        const x = of(a).dataset.number, y = of(b).dataset.number;
        if (heading.classList.contains("number")) {
          if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);  // what is missing, last
          return (up ? 1 : -1) * (Number(x) - Number(y));
        }
        return (up ? 1 : -1) * of(a).textContent.localeCompare(of(b).textContent, undefined, { numeric: true });
      };
      rows.sort(compare);
      body.append(...rows);
    });
  });
  const field = document.getElementById(table.dataset.filter);
  if (field === null) continue;
  const count = document.getElementById(field.getAttribute("aria-describedby"));
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let kept = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      kept += row.hidden ? 0 : 1;
    }
    count.textContent = `${kept} of ${body.rows.length} rows`;
  });
}
// Pictures: a click, or Enter, shows one as large as the window; Escape or a click closes it.
const large = document.getElementById("large");
for (const button of document.querySelectorAll("button.picture")) {
  button.addEventListener("click", () => {
    const image = button.querySelector("img");
    large.querySelector("img").src = image.src;
    large.querySelector("img").alt = image.alt;
    large.showModal();
  });
}
large.addEventListener("click", () => large.close());
// On paper everything is unfolded.
const folded = () => [...document.querySelectorAll("details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => { opened = folded(); for (const part of opened) part.open = true; });
addEventListener("afterprint", () => { for (const part of opened) part.open = false; });
