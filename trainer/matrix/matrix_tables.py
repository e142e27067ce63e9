"""A matrix as short tables in Markdown."""

from schemas.matrix_cell import MatrixCell, Measure
from schemas.matrix_file import MatrixFile


def markdown(matrix: MatrixFile) -> str:
    """Two tables: the compared measure of each cell, tasks down and models across; and what is said of each pair."""
    cells = {(cell.task.name, cell.model.name): cell for cell in matrix.cells}
    models = [model.name for model in matrix.models]
    lines = [_row(["task", "measure", *models]), _row(["---", "---", *["--:"] * len(models)])]
    for task in matrix.tasks:
        row = [cells.get((task.name, model)) for model in models]
        measure = next((cell.measures[0] for cell in row if cell is not None), None)
        lines.append(_row([task.name, _named(measure), *map(_value, row)]))
    sizes = [("parameters", [f"{m.parameters:,}" if m.parameters else "" for m in matrix.models])]
    sizes.append(("bytes of weights", [f"{m.bytes:,}" if m.bytes else "" for m in matrix.models]))
    lines += [_row([name, "", *values]) for name, values in sizes]
    if matrix.comparison is not None and matrix.comparison.pairs:
        titles = ["task", "a", "b", "what can be said of a"]
        lines += ["", _row(titles), _row(["---"] * len(titles))]
        lines += [_row([pair.task, pair.a, pair.b, pair.words]) for pair in matrix.comparison.pairs]
    for note in matrix.comparison.notes if matrix.comparison is not None else ():
        lines += ["", f"- {' '.join(note.split())}"]
    return "\n".join(lines) + "\n"


def _named(measure: Measure | None) -> str:
    if measure is None:
        return ""
    return measure.name + (f", {measure.unit}" if measure.unit else "")


def _value(cell: MatrixCell | None) -> str:
    if cell is None:
        return "failed"
    measure = cell.measures[0]
    return f"{measure.value:.4g}" if measure.unit else f"{100 * measure.value:.1f} %"


def _row(values: list[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"
