"""Items of which two sides give different results, as data for the page, bounded in bytes.

Which items those are, and in what order, the comparison says; the texts come from the items of the cells.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from schemas.matrix_cell import MatrixCell, MatrixItem
from schemas.matrix_comparison import PairResult, Side
from teacher_cache.pages.frame import inert_json
from teacher_cache.pages.page_text import shown_text
from trainer.matrix.page.shown import Shown
from trainer.matrix.statistics.comparing import Items

MOST_ITEMS = 12  # of one pair and task
MOST_PROMPT, MOST_ANSWER, MOST_SCORES = 700, 400, 12


def changed_items(shown: Shown, cells: Sequence[MatrixCell], items: Items, most_bytes: int) -> dict[str, Any]:
    """The pairs of the page with the items that changed, within ``most_bytes`` of JSON; each task has its part.

    ``{"sides": [name, …], "tasks": [name, …], "higher": [whether more is better, …], "texts": [[item, …], …], "pairs":
    [[a, b, task, items that a does better, that b does better, [item, …]], …]}``: ``texts`` has the items of each task,
    pairs give sides, tasks and items by their places.
    """
    texts: list[list[dict[str, Any]]] = []
    chosen: dict[tuple[str, str, str], list[int]] = {}
    for place, task in enumerate(shown.tasks):
        pairs = [pair for pair in shown.pairs if pair.task == task.name]
        found = _read(shown, cells, items, task.name, {id_ for pair in pairs for id_ in pair.changed})
        part = most_bytes // (len(shown.tasks) - place)
        kept, of_pair, left = _fill(shown, pairs, found, part)
        texts.append(kept)
        most_bytes -= part - left
        chosen |= {(pair.a, pair.b, pair.task): places for pair, places in zip(pairs, of_pair, strict=True)}
    return {
        "sides": [shown_text(side.name) for side in shown.sides],
        "tasks": [shown_text(task.name) for task in shown.tasks],
        "higher": [task.higher_is_better for task in shown.tasks],
        "texts": texts,
        "pairs": [
            [
                shown.number[pair.a] - 1,
                shown.number[pair.b] - 1,
                shown.column[pair.task],
                pair.a_better,
                pair.b_better,
                chosen[pair.a, pair.b, pair.task],
            ]
            for pair in shown.pairs
        ],
    }


class _Found:
    """An item with what its models answered."""

    def __init__(self, item: MatrixItem):
        self.id = item.id
        self.prompt, self.wanted = shown_text(item.prompt, MOST_PROMPT), shown_text(item.wanted, MOST_ANSWER)
        self.cluster = shown_text(item.cluster)
        self.answers: dict[str, tuple[float, str]] = {}  # score and text, by model

    def scores(self, side: Side) -> list[float]:
        return [self.answers[model][0] for model in side.models if model in self.answers]

    def mean(self, side: Side) -> float:
        scores = self.scores(side)
        return sum(scores) / max(1, len(scores))

    def head(self) -> dict[str, Any]:
        return {"id": shown_text(self.id), "cluster": self.cluster, "prompt": self.prompt, "wanted": self.wanted}

    def answer(self, side: Side) -> list[Any]:
        """Scores of the side's models, and what the first of them answered."""
        scores = [float(f"{score:.3g}") for score in self.scores(side)[:MOST_SCORES]]
        return [scores, next((self.answers[model][1] for model in side.models if model in self.answers), "")]


def _read(shown: Shown, cells: Sequence[MatrixCell], items: Items, task: str, wanted: set[str]) -> dict[str, _Found]:
    """The wanted items of a task, from one cell after the other."""
    found: dict[str, _Found] = {}
    models = {model for side in shown.sides for model in side.models}
    measure = shown.tasks[shown.column[task]].measure
    for cell in cells:
        if not wanted or cell.items is None or cell.task.name != task or cell.model.name not in models:
            continue
        for item in items[cell.model.name, task]:
            if item.id in wanted and measure in item.scores:
                if item.id not in found:
                    found[item.id] = _Found(item)
                found[item.id].answers[cell.model.name] = item.scores[measure], shown_text(item.answer, MOST_ANSWER)
    return found


def _fill(
    shown: Shown, pairs: Sequence[PairResult], found: dict[str, _Found], most_bytes: int
) -> tuple[list[dict[str, Any]], list[list[int]], int]:
    """Texts of items; places in them for each pair, round by round one of every pair; the bytes that are left."""
    sides = {side.name: side for side in shown.sides}
    kept: list[dict[str, Any]] = []
    place_of: dict[str, int] = {}
    of_pair: list[list[int]] = [[] for _ in pairs]
    queues = [_alternating(pair, found, sides) for pair in pairs]
    left = most_bytes
    for _ in range(MOST_ITEMS):
        for pair, queue, places in zip(pairs, queues, of_pair, strict=True):
            item = next(queue, None)
            if item is None:
                continue
            place = place_of.get(item.id, len(kept))
            new = {} if item.id in place_of else item.head()
            known = {} if new else kept[place]["by"]
            answers = {
                str(shown.number[name] - 1): item.answer(sides[name])
                for name in (pair.a, pair.b)
                if str(shown.number[name] - 1) not in known
            }
            size = len(inert_json([new, answers]).encode()) + 16
            if size > left:
                return kept, of_pair, left
            left -= size
            if new:
                place_of[item.id] = place
                kept.append(new | {"by": {}})
            kept[place]["by"].update(answers)
            places.append(place)
    return kept, of_pair, left


def _alternating(pair: PairResult, found: dict[str, _Found], sides: dict[str, Side]) -> Iterator[_Found]:
    """The changed items of a pair in their order, in turn one that ``a`` and one that ``b`` does better."""
    by_winner: dict[bool, list[_Found]] = defaultdict(list)
    for id_ in pair.changed:
        if id_ in found:
            difference = found[id_].mean(sides[pair.a]) - found[id_].mean(sides[pair.b])
            by_winner[difference > 0].append(found[id_])
    for both in zip_longest(by_winner[True], by_winner[False]):
        yield from (item for item in both if item is not None)
