"""A matrix as short tables in Markdown."""

from schemas.matrix_cell import MatrixCell, Measure
from schemas.matrix_file import MatrixFile


def markdown(matrix: MatrixFile) -> str:
    """One table: tasks down, models across, the compared measure of each cell."""
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
