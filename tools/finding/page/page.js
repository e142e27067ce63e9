"use strict";
{
  const LIMIT = 200; // rows shown at first: laying out thousands takes a browser seconds
  const body = document.querySelector("#caches tbody");
  const rows = Array.from(body.rows);
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const input = document.getElementById("filter");
  const status = document.getElementById("shown");
  const more = document.getElementById("more");
  let limit = LIMIT;

  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let matches = 0;
    for (const row of rows) {
      const matching = words.every((word) => texts.get(row).includes(word));
      matches += matching ? 1 : 0;
      row.hidden = !matching || matches > limit;
    }
    more.hidden = matches <= limit;
    status.textContent = more.hidden ? `${matches} shown` : `${limit} of ${matches} shown`;
  };
  input.addEventListener("input", show);
  more.addEventListener("click", () => {
    limit = Infinity;
    show();
    input.focus(); // the focused button has disappeared
  });
  document.getElementById("search").addEventListener("submit", (event) => event.preventDefault());
  show(); // browsers restore the filter text on reload

  const collator = new Intl.Collator("en", { numeric: true });
  const headings = Array.from(document.querySelectorAll("#caches th"));
  const value = (row, column) => row.cells[column].dataset.value;
  for (const [column, heading] of headings.entries()) {
    const button = heading.querySelector("button");
    const compare = button.dataset.kind === "number"
      ? (a, b) => Number(value(a, column)) - Number(value(b, column))
      : (a, b) => collator.compare(value(a, column), value(b, column));
    button.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      rows.sort((a, b) => (ascending ? compare(a, b) : compare(b, a)));
      show();
      body.append(...rows);
    });
  }
}
