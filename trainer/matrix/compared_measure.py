"""Which measure of a cell is compared: its first."""

from schemas.errors import UserError
from schemas.matrix_cell import MatrixCell


def led_by(cell: MatrixCell, measure: str | None) -> MatrixCell:
    """The cell with this measure first. Raises UserError if it has none of this name."""
    if measure is None:
        return cell
    first = [each for each in cell.measures if each.name == measure]
    if not first:
        names = ", ".join(each.name for each in cell.measures)
        raise UserError(f"tasks: {cell.task.name}: measure: there is no {measure!r}, choose one of: {names}")
    return cell.model_copy(update={"measures": first + [each for each in cell.measures if each.name != measure]})
