"""What the page shows of a comparison: its sides, tasks and pairs, cut to what one page can hold, and their names."""

from collections.abc import Iterable

from schemas.matrix_comparison import Estimate, MatrixComparison, PairResult

MOST_SIDES, MOST_TASKS = 40, 40


class Shown:
    """The parts of a comparison that are on the page, and where to find its numbers.

    most_models: of all sides together, but one of each side at least.
    """

    def __init__(self, comparison: MatrixComparison, most_pairs: int, most_models: int):
        self.comparison = comparison
        self.sides = comparison.sides[:MOST_SIDES]
        self.tasks = comparison.tasks[:MOST_TASKS]
        self.models = {side.name: side.models[: max(1, most_models // len(self.sides))] for side in self.sides}
        self.number = {side.name: number for number, side in enumerate(self.sides, 1)}
        self.column = {task.name: column for column, task in enumerate(self.tasks)}
        decided_first = sorted(filter(self._is_shown, comparison.pairs), key=lambda pair: pair.verdict == "cannot tell")
        self.pairs = decided_first[:most_pairs]
        self._estimates = {(each.name, each.task): each for each in comparison.estimates}
        self._cells = {(each.name, each.task, each.measure): each for each in comparison.cells}

    def _is_shown(self, pair: PairResult) -> bool:
        return pair.a in self.number and pair.b in self.number and pair.task in self.column

    @property
    def left_out(self) -> list[str]:
        """What is not on the page, a sentence each."""
        all_of, shown = self.comparison, "are on this page; the JSON has all."
        counts = (
            ("models and arms", len(self.sides), len(all_of.sides)),
            ("models", sum(map(len, self.models.values())), sum(len(side.models) for side in all_of.sides)),
            ("tasks", len(self.tasks), len(all_of.tasks)),
            ("comparisons", len(self.pairs), len(all_of.pairs)),
        )
        return [f"{part:,} of {whole:,} {what} {shown}" for what, part, whole in counts if part < whole]

    def estimate(self, side: str, task: str) -> Estimate | None:
        """A side's compared measure on a task."""
        return self._estimates.get((side, task))

    def cell(self, model: str, task: str, measure: str) -> Estimate | None:
        """Any measure of a model on a task."""
        return self._cells.get((model, task, measure))

    def mean(self, models: Iterable[str], task: str, measure: str) -> float | None:
        """The mean of a measure over the models of a side; None unless all have it."""
        found = [self.cell(model, task, measure) for model in models]
        values = [each.value for each in found if each is not None]
        return sum(values) / len(values) if values and len(values) == len(found) else None
