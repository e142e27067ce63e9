"""The page of a matrix: verdicts first, then abilities, all pairs, what changed, cost, and what was run.

The same cells, items and comparison give the same bytes. Words on differences are the comparison's own. Everything in
them is untrusted: the template escapes it, the script inserts it as text, and control characters are made visible.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.matrix_cell import MatrixCell
from schemas.matrix_comparison import MatrixComparison
from schemas.teachers_compared import TeachersCompared
from teacher_cache.pages.frame import render_page
from teacher_cache.pages.page_text import shown_text
from trainer.matrix.page.changed_items import changed_items
from trainer.matrix.page.page_figures import abilities, costs, quality_tasks
from trainer.matrix.page.page_tables import column, measure_table, overview, pair_rows, verdicts, what_was_run
from trainer.matrix.page.shown import Shown
from trainer.matrix.page.teachers_table import teachers_table
from trainer.matrix.statistics.comparing import Items

HERE = Path(__file__).parent
SCRIPTS = ("elements.js", "sorted_table.js", "page.js")  # one after the other in one element
MOST_BYTES = 2_000_000  # of the page
LEAST_ITEM_BYTES = 400_000  # of them, kept for items that changed
LIMITS = ((1000, 200), (500, 100), (200, 60), (100, 40), (0, 40))  # pairs and models: as many as leave that room
MOST_NOTES = 20


def matrix_page(
    cells: Sequence[MatrixCell],
    items: Items,
    comparison: MatrixComparison,
    teachers: TeachersCompared | None = None,
) -> str:
    """The HTML, of at most ``MOST_BYTES`` in UTF-8.

    ``items``: of the cells that have them, looked up task by task, so a mapping may read them when asked. Only the
    first sides, tasks and pairs are on the page where there are very many (``trainer/matrix/page/shown.py``); the page
    then says so.
    """
    for most_pairs, most_models in LIMITS:
        shown = Shown(comparison, most_pairs, most_models)
        parts = _parts(shown, cells) | {"teachers": None if teachers is None else teachers_table(teachers)}
        without_items = len(render_page(HERE, SCRIPTS, changed_items(shown, [], items, 0), **parts))
        if without_items <= MOST_BYTES - LEAST_ITEM_BYTES:
            break
    data = changed_items(shown, cells, items, MOST_BYTES - without_items)
    return render_page(HERE, SCRIPTS, data, **parts).decode()


def _parts(shown: Shown, cells: Sequence[MatrixCell]) -> dict[str, Any]:
    """What the template shows."""
    comparison = shown.comparison
    decided = sum(pair.verdict != "cannot tell" for pair in comparison.pairs)
    models = sum(len(side.models) for side in comparison.sides)
    key_figures = [
        (models, "models" if models == len(comparison.sides) else f"models, {len(comparison.sides)} arms"),
        (len(comparison.tasks), "tasks"),
        (sum(task.items for task in comparison.tasks), "items"),
        (len(comparison.pairs), "comparisons"),
        (decided, "real differences"),
    ]
    return {
        "title": f"{_counted(models, 'model')} on {_counted(len(comparison.tasks), 'task')}",
        "key_figures": [(f"{count:,}", what) for count, what in key_figures],
        "notes": [shown_text(note, 400) for note in comparison.notes[:MOST_NOTES]] + shown.left_out,
        "more_notes": max(0, len(comparison.notes) - MOST_NOTES),
        "verdicts": verdicts(shown),
        "abilities": abilities(shown),
        "chance": any(task.chance is not None for task in shown.tasks),
        "seeds": any(len(side.models) > 1 for side in shown.sides),
        "columns": [column(task) for task in shown.tasks],
        "overview": overview(shown),
        "pairs": pair_rows(shown),
        "costs": costs(shown, cells),
        "quality": [shown_text(task.name) for task in quality_tasks(shown)],
        "speed": measure_table(shown, cells, ["speed", "size"]),
        "distillation": measure_table(shown, cells, ["distillation"]),
        "run": what_was_run(shown, cells),
        "footer": "Written by train-student matrix. Numbers and words on differences are those of its JSON.",
    }


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
