"""The results of a matrix, which follow from its cells alone."""

from collections.abc import Iterator, Mapping, Sequence

from schemas.matrix_cell import MatrixCell, MatrixItem
from schemas.matrix_comparison import MatrixComparison
from schemas.matrix_config import Claim, MatrixConfig
from schemas.matrix_file import MatrixFile
from trainer.matrix.cell_files import read_items
from trainer.matrix.compared_measure import led_by
from trainer.matrix.matrix_plan import MatrixPlan
from trainer.matrix.matrix_tables import markdown
from trainer.matrix.statistics.wording import claim_words, untested_words
from trainer.run.output_files import replace_text
from trainer.run.owner import Fence


class ItemsOfCells(Mapping[tuple[str, str], Sequence[MatrixItem]]):
    """The items of cells by names of model and task, read when they are asked for."""

    def __init__(self, plan: MatrixPlan, cells: Sequence[MatrixCell]) -> None:
        self._output = plan.output
        self._cells = {(cell.model.name, cell.task.name): cell for cell in cells if cell.items is not None}

    def __getitem__(self, names: tuple[str, str]) -> list[MatrixItem]:
        return read_items(self._output, self._cells[names])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


def write_results(config: MatrixConfig, plan: MatrixPlan, fence: Fence) -> None:
    """Compare the cells that are there, and write them as JSON, Markdown and one HTML page. Raises UserError."""
    led = {task.name: getattr(task, "measure", None) for task in config.tasks}
    cells: list[MatrixCell] = []
    missing = []
    for planned in plan.cells:
        cell = planned.done()
        if cell is None:
            missing.append((planned.order.task.name, planned.order.model.name))
        else:
            cells.append(led_by(cell, led[cell.task.name]))
    comparison = _compared(config, plan, cells)
    matrix = MatrixFile(models=plan.models, tasks=plan.tasks, cells=cells, missing=missing, comparison=comparison)
    fence()
    replace_text(plan.output / "matrix.json", matrix.model_dump_json(indent=1) + "\n")
    replace_text(plan.output / "matrix.md", markdown(matrix))
    if comparison is not None:
        from trainer.matrix.page.matrix_page import matrix_page

        page = matrix_page(cells, ItemsOfCells(plan, cells), comparison, plan.teachers)
        replace_text(plan.output / "matrix.html", page)


def _compared(config: MatrixConfig, plan: MatrixPlan, cells: Sequence[MatrixCell]) -> MatrixComparison | None:
    from trainer.matrix.statistics.comparing import compare

    if not cells:
        return None
    there = {cell.model.arm or cell.model.name for cell in cells}
    pairs = None if config.pairs is None else [pair for pair in config.pairs if {*pair} <= there]
    comparison = compare(cells, ItemsOfCells(plan, cells), pairs)
    return comparison if config.claim is None else _with_claim(comparison, config.claim)


def _with_claim(comparison: MatrixComparison, claim: Claim) -> MatrixComparison:
    """The comparison with what it says of a claim as its first note."""
    words = untested_words(claim.says, claim.better, claim.than, claim.task)
    for pair in comparison.pairs:
        if pair.task == claim.task and {pair.a, pair.b} == {claim.better, claim.than}:
            words = claim_words(claim.says, claim.better, pair)
    return comparison.model_copy(update={"notes": [words, *comparison.notes]})
