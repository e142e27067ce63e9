from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from schemas.errors import UserError
from schemas.matrix_cell import ItemsFile, MatrixCell, MatrixItem, Measure, ModelEntry, TaskEntry
from schemas.matrix_comparison import CHANGED, MatrixComparison, PairResult
from trainer.matrix.statistics import comparing, inference
from trainer.matrix.statistics.comparing import compare

RNG = np.random.default_rng(0)
ACCURACY, NATS = Measure(name="accuracy", value=0), Measure(name="nats", value=0, unit="nats", higher_is_better=False)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (comparing, inference):
        monkeypatch.setattr(module, "RESAMPLES", 999)


class Matrix:
    """Cells and items, added one by one."""

    def __init__(self) -> None:
        self.cells: list[MatrixCell] = []
        self.items: dict[tuple[str, str], list[MatrixItem]] = {}

    def add(
        self,
        model: str,
        task: str,
        scores: Sequence[float] | None,
        measure: Measure = ACCURACY,
        clusters: Sequence[str] | None = None,
        **of_model: Any,
    ) -> None:
        entry = ModelEntry(name=model, digest=f"{len(model):064x}", **of_model)
        value = float(np.mean(scores)) if scores is not None else measure.value
        file = None
        if scores is not None:
            file = ItemsFile(name="items.jsonl", sha256="0" * 64, items=len(scores))
            self.items[model, task] = [
                MatrixItem(id=f"i{index}", cluster=clusters[index] if clusters else "", scores={measure.name: score})
                for index, score in enumerate(scores)
            ]
        self.cells.append(
            MatrixCell(
                model=entry,
                task=TaskEntry(name=task, digest="f" * 64, ability="knowledge"),
                measures=[measure.model_copy(update={"value": value})],
                items=file,
            )
        )

    def compared(self, pairs: Sequence[tuple[str, str]] | None = None) -> MatrixComparison:
        return compare(self.cells, self.items, pairs)


def right(share: float, items: int = 400, seed: int = 0) -> list[float]:
    """Scores whose mean is ``share`` exactly, and which a model with a greater share has right as well."""
    order = np.random.default_rng(seed).permutation(items)
    return (order < share * items).astype(float).tolist()


def three_models() -> Matrix:
    matrix = Matrix()
    for name, share in (("small", 0.4), ("large", 0.6), ("twin", 0.6)):
        matrix.add(name, "law", right(share))
    for name, nats in (("small", 1.2), ("large", 1.0), ("twin", 1.0)):
        matrix.add(name, "text", (RNG.normal(nats, 0.1, 100)).tolist(), NATS)
    for name, seconds in (("small", 2.0), ("large", 9.0), ("twin", 9.1)):
        matrix.add(name, "speed", None, Measure(name="seconds", value=seconds, unit="s", higher_is_better=False))
    return matrix


def of(pairs: Sequence[PairResult], a: str, b: str, task: str) -> PairResult:
    [found] = [pair for pair in pairs if (pair.a, pair.b, pair.task) == (a, b, task)]
    return found


def test_a_matrix_of_three_models() -> None:
    found = three_models().compared()
    assert [side.name for side in found.sides] == ["small", "large", "twin"]
    assert (found.tests, len(found.pairs)) == (6, 6)
    law = of(found.pairs, "small", "large", "law")
    assert law.words.startswith("small is worse (−20.0 points, 95 % interval −23.")
    assert law.words.endswith("p < 0.001 after Holm)")
    assert (law.a_better, law.b_better, law.items, law.clusters, law.covers) == (0, 80, 400, 400, "items")
    assert len(law.changed) == CHANGED
    assert of(found.pairs, "small", "large", "text").verdict == "worse"
    assert of(found.pairs, "small", "large", "text").difference == pytest.approx(0.2, abs=0.05)
    same = of(found.pairs, "large", "twin", "law")
    assert (same.verdict, same.p_holm, same.changed) == ("cannot tell", 1, [])
    assert found.pairs == MatrixComparison.model_validate_json(found.model_dump_json()).pairs


def test_the_same_matrix_gives_the_same_bytes() -> None:
    matrix = three_models()
    assert matrix.compared().model_dump_json() == matrix.compared().model_dump_json()


def test_p_values_are_adjusted_for_the_whole_matrix() -> None:
    matrix = three_models()
    pairs = matrix.compared().pairs
    for pair in pairs:
        rank = sum(other.p < pair.p for other in pairs)
        assert pair.p_holm >= min(1, pair.p * (6 - rank) * 0.999)
    [alone] = Matrix.compared(matrix, [("large", "twin")]).pairs[1:]
    assert alone.p_holm <= of(pairs, "large", "twin", "text").p_holm


def test_cells_without_items_are_shown_and_not_compared() -> None:
    found = three_models().compared()
    [speed] = [cell for cell in found.cells if (cell.name, cell.task) == ("large", "speed")]
    assert (speed.low, speed.high, speed.covers, speed.items, speed.words) == (None, None, "nothing", 0, "9.00 s")
    assert {pair.task for pair in found.pairs} == {"law", "text"}
    assert [column.items for column in found.tasks] == [400, 100, 0]


def test_cells_have_intervals_of_their_own_by_clusters() -> None:
    matrix = Matrix()
    subjects = [f"s{index // 20}" for index in range(400)]
    answers = np.repeat(RNG.random(20) < 0.6, 20).astype(float).tolist()
    matrix.add("alone", "law", answers)
    clustered = Matrix()
    clustered.add("alone", "law", answers, clusters=subjects)
    [independent], [found] = matrix.compared().cells, clustered.compared().cells
    assert (found.value, found.clusters, found.items, found.covers) == (independent.value, 20, 400, "items")
    assert found.high - found.low > 3 * (independent.high - independent.low)
    assert found.words == clustered.compared().estimates[0].words
    assert found.words.startswith(f"{100 * found.value:.0f} % (")


def seeds(matrix: Matrix, arm: str, numbers: Sequence[int], nats: float, noise: float = 0.05) -> None:
    for seed in numbers:
        luck = np.random.default_rng(seed).normal(0, noise)
        scores = np.random.default_rng(99).normal(2, 0.5, 80) + nats + luck + RNG.normal(0, 0.05, 80)
        matrix.add(f"{arm}-{seed}", "text", scores.tolist(), NATS, arm=arm, seed=seed)


def test_arms_are_compared_over_seeds_and_items() -> None:
    matrix = Matrix()
    seeds(matrix, "pro", [3, 1, 2], 0.0)
    seeds(matrix, "flash", [1, 2, 3], -0.2)
    matrix.add("given", "text", RNG.normal(2, 0.5, 80).tolist(), NATS)
    found = matrix.compared([("flash", "pro"), ("pro", "given")])
    assert [side.models for side in found.sides][:2] == [["pro-1", "pro-2", "pro-3"], ["flash-1", "flash-2", "flash-3"]]
    arms, given = found.pairs
    assert (arms.seeds_a, arms.seeds_b, arms.seeds_paired, arms.covers) == (3, 3, True, "seeds and items")
    assert arms.words.startswith("flash is better (−0.20")
    assert (given.seeds_a, given.seeds_b, given.seeds_paired) == (3, 1, False)
    [estimate] = [each for each in found.estimates if each.name == "flash"]
    assert (estimate.seeds, estimate.covers) == (3, "seeds and items")
    assert estimate.value == pytest.approx(np.mean([cell.value for cell in found.cells if cell.name[:5] == "flash"]))
    assert found.notes == []


def test_what_cannot_be_told_of_arms_names_seeds_and_items() -> None:
    matrix = Matrix()
    seeds(matrix, "pro", [1, 2, 3], 0.0, noise=0.3)
    seeds(matrix, "flash", [4, 5, 6], 0.1, noise=0.3)
    [pair] = matrix.compared().pairs
    assert (pair.verdict, pair.seeds_paired) == ("cannot tell", False)
    assert pair.seeds_needed > 3
    assert f"would need n = {pair.seeds_needed:,} seeds, here 3" in pair.words
    assert "after Holm" not in pair.words


@pytest.mark.parametrize(
    ("numbers", "note"), [([7], "one seed: its intervals allow for other items"), ([7, 8], "two seeds")]
)
def test_too_few_seeds_are_noted(numbers: list[int], note: str) -> None:
    matrix = Matrix()
    seeds(matrix, "pro", numbers, 0.0)
    [said] = matrix.compared().notes
    assert note in said


def test_only_items_that_both_have_are_compared() -> None:
    matrix = Matrix()
    matrix.add("a", "law", right(0.6))
    matrix.add("b", "law", right(0.5))
    matrix.items["b", "law"] = [item for item in matrix.items["b", "law"] if item.id not in ("i3", "i9")][::-1]
    [pair] = matrix.compared().pairs
    assert pair.items == 398
    matrix.items["b", "law"] = [item for item in matrix.items["b", "law"] if item.id == "i4"]
    found = matrix.compared()
    assert (found.pairs, found.tests) == ([], 0)
    assert "law: a and b have fewer than two items in common; not compared" in found.notes


def test_items_may_lack_a_score() -> None:
    matrix = three_models()
    for (_, task), items in matrix.items.items():
        items[0] = items[0].model_copy(update={"scores": {"other": 1.0}}) if task == "text" else items[0]
    found = matrix.compared()
    assert {pair.items for pair in found.pairs if pair.task == "text"} == {99}


def test_a_value_that_is_no_mean_has_no_interval() -> None:
    matrix = Matrix()
    matrix.add("a", "law", right(0.6))
    cell = matrix.cells[0]
    matrix.cells[0] = cell.model_copy(update={"measures": [cell.measures[0].model_copy(update={"value": 0.7})]})
    found = matrix.compared()
    assert (found.cells[0].value, found.cells[0].low, found.cells[0].items) == (0.7, None, 0)
    assert "law, a: accuracy is not the mean of its items" in found.notes[0]


def refused(matrix: Matrix, pairs: Sequence[tuple[str, str]] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        matrix.compared(pairs)
    return str(caught.value)


def changed(matrix: Matrix, index: int, **updates: Mapping[str, Any]) -> Matrix:
    cell = matrix.cells[index]
    parts = {name: getattr(cell, name).model_copy(update=update) for name, update in updates.items()}
    matrix.cells[index] = cell.model_copy(update=parts)
    return matrix


def test_what_cannot_be_compared_is_refused() -> None:
    assert "no arm or model is named huge; known: small, large, twin" in refused(three_models(), [("small", "huge")])
    assert "one side twice" in refused(three_models(), [("small", "small")])
    twice = three_models()
    twice.cells.append(twice.cells[0])
    assert "task law: two cells of model small" in refused(twice)
    assert "task law: large ran eeeeeeeeeeee, small ffffffffffff" in refused(
        changed(three_models(), 1, task={"digest": "e" * 64})
    )
    assert "model small: its cells differ" in refused(changed(three_models(), 0, model={"seed": 3}))
    other = three_models()
    other.cells[1] = other.cells[1].model_copy(update={"measures": [NATS]})
    assert "task law: the first measure of large is nats (nats), that of small accuracy (share)" in refused(other)


def test_items_that_contradict_one_another_are_refused() -> None:
    matrix = three_models()
    matrix.items["large", "law"][5] = matrix.items["large", "law"][4]
    assert "items of large on law: id 'i4' occurs twice" in refused(matrix)
    matrix = three_models()
    item = matrix.items["large", "law"][5]
    matrix.items["large", "law"][5] = item.model_copy(update={"cluster": "art"})
    assert "item 'i5' is in cluster 'art', for another model in ''" in refused(matrix)


def test_arms_must_name_their_seeds() -> None:
    matrix = Matrix()
    matrix.add("x", "law", right(0.5), arm="pro", seed=1)
    matrix.add("yy", "law", right(0.5), arm="pro", seed=1)
    assert "arm pro: its seeds are x 1, yy 1; every model of an arm needs one of its own" in refused(matrix)
    matrix = Matrix()
    matrix.add("pro", "law", right(0.5))
    matrix.add("x", "law", right(0.5), arm="pro", seed=1)
    assert "pro: the name of an arm and of a model on its own" in refused(matrix)
