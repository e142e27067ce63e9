"""Made-up results of a matrix: cells, items, and a comparison by plain paired differences."""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.matrix_cell import ItemsFile, Kind, MatrixCell, MatrixItem, Measure, ModelEntry, TaskEntry
from schemas.matrix_comparison import Estimate, MatrixComparison, PairResult, Side, TaskColumn
from schemas.teachers_compared import TeachersCompared


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True)
class MadeTask:
    """A task of random items; a model of strength s is right with probability ``level`` + s."""

    name: str
    ability: str = "knowledge"
    measure: str = "accuracy"
    level: float = 0.5
    kind: Kind = "quality"
    items: int = 60
    unit: str = ""
    higher_is_better: bool = True
    chance: float | None = None
    prompt: str = "What is {}?"
    cluster: str = ""
    more: dict[str, tuple[float, str]] = field(default_factory=dict)  # further measures: value, unit


@dataclass(frozen=True)
class MadeModel:
    name: str
    strength: float = 0.0
    arm: str = ""
    seed: int | None = None
    parameters: int | None = 135_000_000
    answer: str = "it is {}"

    @property
    def side(self) -> str:
        return self.arm or self.name


@dataclass(frozen=True)
class MadeResults:
    cells: list[MatrixCell]
    comparison: MatrixComparison
    items: "MadeItems"


class MadeItems(Mapping[tuple[str, str], list[MatrixItem]]):
    """Items by names of model and task, made when asked for; ``asked`` has the names in turn."""

    def __init__(
        self, models: Sequence[MadeModel], tasks: Sequence[MadeTask], scores: dict[tuple[str, str], np.ndarray]
    ):
        self.models = {model.name: model for model in models}
        self.tasks = {task.name: task for task in tasks}
        self.scores = scores
        self.asked: list[tuple[str, str]] = []

    def __getitem__(self, names: tuple[str, str]) -> list[MatrixItem]:
        self.asked.append(names)
        model, task = self.models[names[0]], self.tasks[names[1]]
        return [
            MatrixItem(
                id=f"{task.name}/{number}",
                cluster=task.cluster,
                scores={task.measure: score},
                prompt=task.prompt.format(number),
                answer=model.answer.format(number),
                wanted=f"the answer {number}",
            )
            for number, score in enumerate(self.scores[names].tolist())
        ]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)


def made_results(models: Sequence[MadeModel], tasks: Sequence[MadeTask], **changed: Any) -> MadeResults:
    """``changed``: fields of the comparison to replace."""
    scores = {(model.name, task.name): _scores(model, task) for model in models for task in tasks}
    cells = [_cell(model, task, scores[model.name, task.name]) for model in models for task in tasks]
    comparison = _compare(models, tasks, scores, cells)
    return MadeResults(cells, comparison.model_copy(update=changed), MadeItems(models, tasks, scores))


def made_teachers(a: str = "PRO", b: str = "Flash") -> TeachersCompared:
    """Made-up figures of two teachers of these names."""
    each = {"effective_support": 20.0, "top1_mass": 0.625, "perplexity": 9.5, "decorative_mass": 0.00125}
    tree = {
        "a": {"teacher": a, "manifest_digest": "1" * 64},
        "b": {"teacher": b, "manifest_digest": "2" * 64},
        "entropy_is_exact": True,
        "overall": {
            "samples": 1234,
            "rows": 56789,
            "a": {"entropy": {"mean": 1.75}, **each},
            "b": {"entropy": {"mean": 1.5}, **each, "perplexity": 11.25},
            "entropy_b_minus_a": {"mean": -0.25, "standard_error": None},
            "top1_agreement": 0.75,
            "kl_a_b": {"mean": 0.5},
            "kl_b_a": {"mean": 0.375},
            "decorative_share": 0.0625,
        },
    }
    return TeachersCompared.model_validate(tree)


def _scores(model: MadeModel, task: MadeTask) -> np.ndarray:
    """Of a model on the items of a task; those of hard items are correlated over models."""
    hardness = np.random.default_rng(int(digest(task.name)[:8], 16)).normal(size=task.items)
    luck = np.random.default_rng(int(digest(task.name + model.name)[:8], 16)).normal(size=task.items)
    ability = hardness * 0.8 + luck * 0.6
    if task.unit:
        return np.round(np.maximum(task.level - model.strength + 0.1 * ability, 0), 4)
    edge = float(np.quantile(np.random.default_rng(0).normal(size=2001), 1 - min(task.level + model.strength, 0.99)))
    return (ability > edge).astype(float)


def _cell(model: MadeModel, task: MadeTask, scores: np.ndarray) -> MatrixCell:
    value = float(scores.mean()) if task.items else task.level - model.strength
    size = None if model.parameters is None else 2 * model.parameters
    entry = ModelEntry(name=model.name, digest=digest(model.name), arm=model.arm, seed=model.seed,
                       parameters=model.parameters, bytes=size)  # fmt: skip
    first = Measure(name=task.measure, value=value, unit=task.unit, higher_is_better=task.higher_is_better,
                    chance=task.chance)  # fmt: skip
    more = [
        Measure(name=name, value=each * (1 - model.strength), unit=unit) for name, (each, unit) in task.more.items()
    ]
    return MatrixCell(
        model=entry,
        task=TaskEntry(name=task.name, digest=digest(task.name), ability=task.ability, kind=task.kind),
        measures=[first, *more],
        items=ItemsFile(name="i.jsonl", sha256=digest("i"), items=task.items) if task.items else None,
        versions={"torch": "2.11.0", "lm-eval": "0.4.13"},
    )


def _words(value: float, low: float | None, high: float | None, unit: str) -> str:
    scale, ending = (100, " %") if unit == "" else (1, f" {unit}")
    around = "" if low is None or high is None else f" ({scale * low:.3g} … {scale * high:.3g})"
    return f"{scale * value:.3g}{ending}{around}"


def _compare(
    models: Sequence[MadeModel],
    tasks: Sequence[MadeTask],
    scores: dict[tuple[str, str], np.ndarray],
    cells: list[MatrixCell],
) -> MatrixComparison:
    sides: dict[str, list[MadeModel]] = {}
    for model in models:
        sides.setdefault(model.side, []).append(model)
    means = {
        (name, task.name): np.mean([scores[model.name, task.name] for model in members], axis=0)
        for name, members in sides.items()
        for task in tasks
    }
    pairs = [
        _pair(a, b, task, means[a, task.name], means[b, task.name], len(sides[a]), len(sides[b]))
        for task in tasks
        if task.items
        for a, b in itertools.combinations(sides, 2)
    ]
    return MatrixComparison(
        tests=len(pairs),
        sides=[
            Side(
                name=name,
                models=[model.name for model in members],
                seeds=[model.seed for model in members if model.seed is not None],
                parameters=members[0].parameters,
                bytes=None if members[0].parameters is None else 2 * members[0].parameters,
            )
            for name, members in sides.items()
        ],
        tasks=[
            TaskColumn(
                name=task.name,
                digest=digest(task.name),
                ability=task.ability,
                kind=task.kind,
                measure=task.measure,
                unit=task.unit,
                higher_is_better=task.higher_is_better,
                chance=task.chance,
                items=task.items,
                clusters=task.items,
            )
            for task in tasks
        ],
        cells=[
            _estimate(
                cell.model.name, cell.task.name, measure, None if place else scores[cell.model.name, cell.task.name]
            )
            for cell in cells
            for place, measure in enumerate(cell.measures)
        ],
        estimates=[
            _estimate(name, task.name, _compared(cells, members, task), means[name, task.name])
            for name, members in sides.items()
            for task in tasks
        ],
        pairs=pairs,
    )


def _compared(cells: list[MatrixCell], members: list[MadeModel], task: MadeTask) -> Measure:
    names = {model.name for model in members}
    found = [cell.measures[0] for cell in cells if cell.model.name in names and cell.task.name == task.name]
    return found[0].model_copy(update={"value": sum(each.value for each in found) / len(found)})


def _estimate(name: str, task: str, measure: Measure, scores: np.ndarray | None) -> Estimate:
    low = high = None
    if scores is not None and len(scores) > 1:
        half = 1.96 * float(scores.std(ddof=1)) / math.sqrt(len(scores))
        low, high = measure.value - half, measure.value + half
    return Estimate(
        name=name,
        task=task,
        measure=measure.name,
        unit=measure.unit,
        higher_is_better=measure.higher_is_better,
        value=measure.value,
        low=low,
        high=high,
        covers="nothing" if low is None else "items",
        items=0 if scores is None else len(scores),
        clusters=0 if scores is None else len(scores),
        seeds=1,
        method="normal",
        words=_words(measure.value, low, high, measure.unit),
    )


def _pair(a: str, b: str, task: MadeTask, of_a: np.ndarray, of_b: np.ndarray, seeds_a: int, seeds_b: int) -> PairResult:
    each = of_a - of_b
    difference, error = float(each.mean()), max(float(each.std(ddof=1)) / math.sqrt(len(each)), 1e-9)
    low, high = difference - 1.96 * error, difference + 1.96 * error
    p = math.erfc(abs(difference) / error / math.sqrt(2))
    gain = difference if task.higher_is_better else -difference
    verdict = "cannot tell" if p > 0.01 else "better" if gain > 0 else "worse"
    scale, unit = (100, " points") if task.unit == "" else (1, f" {task.unit}")
    needed = math.ceil(len(each) * (2.8 * error / difference) ** 2) if verdict == "cannot tell" and difference else None
    numbers = (
        f"{scale * difference:+.2g}{unit}, 95 % interval {scale * low:.2g} … {scale * high:.2g}, p = {p:.2g} after Holm"
    )
    words = f"cannot tell ({numbers}; would need n = {needed} items)" if needed else f"{a} is {verdict} ({numbers})"
    changed = np.argsort(-np.abs(each), kind="stable")[: np.count_nonzero(each)][:50]
    return PairResult(
        a=a,
        b=b,
        task=task.name,
        difference=difference,
        low=low,
        high=high,
        p=p,
        p_holm=min(1.0, p),
        verdict=verdict,  # type: ignore[arg-type]
        words=words,
        covers="items",
        method="paired differences of items",
        items=len(each),
        clusters=len(each),
        seeds_a=seeds_a,
        seeds_b=seeds_b,
        seeds_paired=False,
        detectable=2.8 * error,
        items_needed=needed,
        a_better=int((each > 0).sum() if task.higher_is_better else (each < 0).sum()),
        b_better=int((each < 0).sum() if task.higher_is_better else (each > 0).sum()),
        changed=[f"{task.name}/{number}" for number in changed.tolist()],
    )
