"""The tables and lists of the page, as plain data for its template."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rich.filesize import decimal

from schemas.matrix_cell import Kind, MatrixCell
from schemas.matrix_comparison import Estimate, PairResult, TaskColumn
from teacher_cache.pages.page_text import shown_text
from trainer.matrix.page.matrix_plots import difference_strip
from trainer.matrix.page.shown import Shown
from trainer.matrix.statistics.wording import decimals, number, p_words

OPEN_VERDICTS, MOST_VERDICTS = 8, 60  # of each kind
MOST_MEASURES = 40  # columns of a table of measures


def verdicts(shown: Shown) -> list[dict[str, Any]]:
    """What the comparison says of its pairs: real differences first, then those that cannot be told."""
    lists = []
    numbered = list(enumerate(shown.pairs))
    for title, name, wanted in (("Differences that are real", "real", True), ("Cannot tell", "unsure", False)):
        found = [(number, pair) for number, pair in numbered if (pair.verdict != "cannot tell") == wanted]
        said = [_verdict(shown, number, pair) for number, pair in found[:MOST_VERDICTS]]
        lists.append(
            {
                "title": title,
                "name": name,
                "count": len(found),
                "open": said[:OPEN_VERDICTS],
                "folded": said[OPEN_VERDICTS:],
                "left_out": len(found) - len(said),
            }
        )
    return lists


def _verdict(shown: Shown, number: int, pair: PairResult) -> dict[str, Any]:
    return {
        "pair": number,
        "sides": [(shown.number[name], shown_text(name)) for name in (pair.a, pair.b)],
        "task": shown_text(pair.task),
        "words": shown_text(pair.words, 400),
        "changed": pair.a_better + pair.b_better,
    }


def column(task: TaskColumn) -> dict[str, str]:
    """The heading of a task."""
    measure = shown_text(task.measure) + (f", {shown_text(task.unit, 20)}" if task.unit else "")
    return {"name": shown_text(task.name), "measure": measure + ("" if task.higher_is_better else " ↓")}


def overview(shown: Shown) -> list[dict[str, Any]]:
    """Rows of models, tasks as columns: a row for each side, and beneath an arm one for each of its models."""
    rows = []
    for side in shown.sides:
        found = [shown.estimate(side.name, task.name) for task in shown.tasks]
        cells = [split_words(each) for each in found]
        rows.append({"number": shown.number[side.name], "name": shown_text(side.name), "cells": cells, "seed": False})
        for model in shown.models[side.name] if len(side.models) > 1 else ():
            found = [shown.cell(model, task.name, task.measure) for task in shown.tasks]
            cells = [split_words(each) for each in found]
            rows.append({"number": None, "name": shown_text(model), "cells": cells, "seed": True})
    return rows


def split_words(estimate: Estimate | None) -> tuple[str, str]:
    """The words of an estimate: the value, and the interval if there is one."""
    value, bracket, interval = ("" if estimate is None else shown_text(estimate.words)).partition(" (")
    return value, bracket.strip() + interval


def pair_rows(shown: Shown) -> list[dict[str, Any]]:
    """Pairs × tasks, decided ones first."""
    tasks = {task.name: task for task in shown.tasks}
    reach: dict[str, float] = defaultdict(float)
    for pair in shown.pairs:
        reach[pair.task] = max(reach[pair.task], abs(pair.low), abs(pair.high))
    return [_pair_row(shown, place, pair, tasks[pair.task], reach[pair.task]) for place, pair in enumerate(shown.pairs)]


def _pair_row(shown: Shown, place: int, pair: PairResult, task: TaskColumn, reach: float) -> dict[str, Any]:
    kind = {"better": "better", "worse": "worse", "cannot tell": "unsure"}[pair.verdict]
    needs = (("n = {:,}", pair.items_needed), ("{:,} seeds", pair.seeds_needed))
    needed = [said.format(count) for said, count in needs if count is not None]
    factor = 100 if task.unit == "" else 1  # shares differ by points
    digits = decimals(factor * (pair.high - pair.low) / 2, factor * pair.difference)

    def words(value: float, sign: bool = False) -> str:
        return number(factor * value, digits, sign)

    return {
        "pair": place,
        "a": (shown.number[pair.a], shown_text(pair.a)),
        "b": (shown.number[pair.b], shown_text(pair.b)),
        "task": shown_text(pair.task),
        "strip": difference_strip("", pair.difference, pair.low, pair.high, reach, kind),
        "difference": words(pair.difference, sign=True),
        "sort": {
            "difference": f"{pair.difference / (reach or 1):.4f}",
            "p": f"{pair.p_holm:.3g}",
            "detectable": f"{pair.detectable / (reach or 1):.4f}",
            "verdict": {"better": 0, "worse": 1, "unsure": 2}[kind],
            "changed": pair.a_better + pair.b_better,
        },
        "interval": f"{words(pair.low)} … {words(pair.high)}",
        "unit": shown_text(task.unit, 20),
        "p": p_words(pair.p_holm).removeprefix("= "),
        "detectable": words(pair.detectable),
        "kind": kind,
        "verdict": pair.verdict,
        "needed": " or ".join(needed),
        "a_better": f"{pair.a_better:,}",
        "b_better": f"{pair.b_better:,}",
    }


def measure_table(shown: Shown, cells: Sequence[MatrixCell], kinds: Iterable[Kind]) -> dict[str, Any]:
    """All measures of tasks of some kinds: models as rows, and a column for each measure, under its task."""
    of_task: dict[str, list[str]] = {task.name: [] for task in shown.tasks if task.kind in set(kinds)}
    for cell in cells:
        for measure in cell.measures:
            if measure.name not in of_task.get(cell.task.name, [measure.name]):
                of_task[cell.task.name].append(measure.name)
    columns = [(task, measure) for task, measures in of_task.items() for measure in measures][:MOST_MEASURES]
    rows = []
    for side in shown.sides:
        for model in shown.models[side.name]:
            found = [shown.cell(model, task, measure) for task, measure in columns]
            if any(found):
                cells_of = [split_words(each) for each in found]
                rows.append({"number": shown.number[side.name], "name": shown_text(model), "cells": cells_of})
    widths = Counter(task for task, _ in columns)
    return {
        "tasks": [(shown_text(task), width) for task, width in widths.items()],
        "measures": [shown_text(measure) for _, measure in columns],
        "rows": rows,
    }


def what_was_run(shown: Shown, cells: Sequence[MatrixCell]) -> dict[str, Any]:
    """Digests of models and tasks, versions of programs, and how the comparison was made."""
    sides = {model: side for side, models in shown.models.items() for model in models}
    models = {cell.model.name: cell.model for cell in cells if cell.model.name in sides}
    tasks = {cell.task.name: cell.task for cell in cells if cell.task.name in shown.column}
    columns = {task.name: task for task in shown.tasks}
    versions: dict[str, Counter[str]] = defaultdict(Counter)
    for cell in cells:
        for program, version in cell.versions.items():
            versions[shown_text(program)][shown_text(version)] += 1
    comparison = shown.comparison
    return {
        "models": [
            {
                "number": shown.number[sides[name]],
                "name": shown_text(name),
                "arm": shown_text(model.arm),
                "seed": "" if model.seed is None else str(model.seed),
                "parameters": "" if model.parameters is None else _amount(model.parameters),
                "size": "" if model.bytes is None else decimal(model.bytes),
                "digest": model.digest,
            }
            for name, model in models.items()
        ],
        "tasks": [
            {
                "name": shown_text(name),
                "ability": shown_text(task.ability),
                "kind": task.kind,
                "measure": shown_text(columns[name].measure),
                "counted": f"{columns[name].items:,}" if columns[name].items else "",
                "clusters": f"{columns[name].clusters:,}" if columns[name].clusters else "",
                "digest": task.digest,
            }
            for name, task in tasks.items()
        ],
        "versions": {
            program: ", ".join(found if len(found) == 1 else (f"{each} ({n} cells)" for each, n in found.items()))
            for program, found in sorted(versions.items())[:100]
        },
        "statistics": [
            f"Intervals: {100 * comparison.confidence:g} %.",
            f"Smallest differences: found with a power of {100 * comparison.power:g} %.",
            f"p after Holm, for {comparison.tests:,} tests.",
        ],
        "methods": [shown_text(method, 300) for method in dict.fromkeys(pair.method for pair in shown.pairs)][:10],
    }


def _amount(count: int) -> str:
    """A count of parameters: ``134.5 M``."""
    for size, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.4g} {name}"
    return str(count)
