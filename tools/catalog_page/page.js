"use strict";
{
  const body = document.querySelector("#caches tbody");
  const rows = Array.from(body.rows);
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const input = document.getElementById("filter");
  const shown = document.getElementById("shown");

  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      row.hidden = !words.every((word) => texts.get(row).includes(word));
      count += row.hidden ? 0 : 1;
    }
    shown.textContent = `${count} shown`;
  };
  input.addEventListener("input", filter);
  document.getElementById("search").addEventListener("submit", (event) => event.preventDefault());
  filter(); // browsers keep what was typed when a page is loaded again

  const collator = new Intl.Collator("en", { numeric: true });
  const heads = Array.from(document.querySelectorAll("#caches th"));
  const value = (row, column) => row.cells[column].dataset.value;
  for (const [column, head] of heads.entries()) {
    const button = head.querySelector("button");
    const compare = button.dataset.kind === "number"
      ? (a, b) => Number(value(a, column)) - Number(value(b, column))
      : (a, b) => collator.compare(value(a, column), value(b, column));
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      rows.sort((a, b) => (ascending ? compare(a, b) : compare(b, a)));
      body.append(...rows);
    });
  }
}
