// Sorts a table by its headings' buttons and shows the rows that a filter lets through, `limit` at first: laying out
// thousands takes a browser seconds. A cell's `data-value` is what it is sorted by. `also(row)`: a further filter.
// Returns what shows the rows again.
const sortedTable = (table, { input, status, more, limit, also = () => true }) => {
  const body = table.tBodies[0], rows = Array.from(body.rows);
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let matches = 0;
    for (const row of rows) {
      const matching = also(row) && words.every((word) => texts.get(row).includes(word));
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
  input.form.addEventListener("submit", (event) => event.preventDefault());
  show(); // browsers restore the filter text on reload

  const collator = new Intl.Collator("en", { numeric: true });
  const headings = Array.from(table.tHead.querySelectorAll("th"));
  const value = (row, column) => row.cells[column].dataset.value;
  for (const [column, heading] of headings.entries()) {
    const button = heading.querySelector("button");
    if (!button) continue;
    const compare = button.dataset.kind === "number"
      ? (a, b) => Number(value(a, column)) - Number(value(b, column))
      : (a, b) => collator.compare(value(a, column), value(b, column));
    button.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      rows.sort((a, b) => (ascending ? compare(a, b) : compare(b, a)));
      show();
      body.append(...rows);
    });
  }
  return show;
};
