"""The figures of the page: bars by ability, and cost beside quality."""

from collections.abc import Iterable, Sequence

from schemas.matrix_cell import MatrixCell, Measure
from schemas.matrix_comparison import TaskColumn
from teacher_cache.pages.page_text import shown_text
from teacher_cache.pages.svg_parts import Figure
from trainer.matrix.page.matrix_plots import Bar, Point, bars, scatter
from trainer.matrix.page.page_tables import split_words
from trainer.matrix.page.shown import Shown
from trainer.matrix.statistics.wording import value_words

MOST_LABEL = 16  # characters of a name in a plot
MOST_COSTS = 24  # plots


def abilities(shown: Shown) -> list[tuple[str, Figure]]:
    """One plot for each task of quality or distillation; tasks of one ability, which is named, stand together."""
    plotted = [task for task in shown.tasks if task.kind in ("quality", "distillation")]
    order = list(dict.fromkeys(task.ability for task in plotted))
    plotted.sort(key=lambda task: order.index(task.ability))
    return [(shown_text(task.ability), _task_figure(shown, task)) for task in plotted]


def _task_figure(shown: Shown, task: TaskColumn) -> Figure:
    values = []
    for side in shown.sides:
        estimate = shown.estimate(side.name, task.name)
        if estimate is None:
            continue
        cells = [shown.cell(model, task.name, task.measure) for model in shown.models[side.name]]
        values.append(
            Bar(
                shown.number[side.name],
                shown_text(side.name, MOST_LABEL),
                estimate.value,
                split_words(estimate)[0].removesuffix(f" {task.unit}"),
                estimate.low,
                estimate.high,
                [cell.value for cell in cells if cell is not None] if len(side.models) > 1 else [],
            )
        )
    name, measure = shown_text(task.name), shown_text(task.measure)
    about = [measure + (f" in {shown_text(task.unit, 20)}" if task.unit else "")]
    about += [] if task.higher_is_better else ["lower is better"]
    about += [f"{task.items:,} items"] if task.items else []
    about += [f"{task.clusters:,} clusters"] if task.clusters and task.clusters != task.items else []
    about += [f"guessing {value_words(task.chance, None, None, task.unit)}"] if task.chance is not None else []
    svg = bars(f"{measure} on {name}", values, task.chance, share=task.unit == "")
    return Figure(name, svg, ", ".join(about))


def quality_tasks(shown: Shown) -> list[TaskColumn]:
    """Tasks whose compared measure is a share that all sides have: those that a mean can be taken of."""
    return [
        task
        for task in shown.tasks
        if task.kind == "quality"
        and task.unit == ""
        and task.higher_is_better
        and all(shown.estimate(side.name, task.name) for side in shown.sides)
    ]


def costs(shown: Shown, cells: Sequence[MatrixCell]) -> list[Figure]:
    """Plots of the mean over the tasks of quality above size, parameters and every measure of speed."""
    tasks = quality_tasks(shown)
    if not tasks:
        return []
    quality = {
        side.name: sum(estimate.value for task in tasks if (estimate := shown.estimate(side.name, task.name)))
        / len(tasks)
        for side in shown.sides
    }
    of_sides: list[tuple[str, str, str, float, list[float | None]]] = [
        ("Size on disk", "MB", "of the weights", 1e6, [side.bytes for side in shown.sides]),
        ("Parameters", "million", "of one model", 1e6, [side.parameters for side in shown.sides]),
    ]
    for task, measure in _speeds(shown, cells):
        values = [shown.mean(side.models, task, measure.name) for side in shown.sides]
        about = f"{shown_text(task)}; {'higher' if measure.higher_is_better else 'lower'} is better"
        of_sides.append((shown_text(measure.name), shown_text(measure.unit, 20), about, 1.0, values))
    plotted = []
    for name, unit, about, scale, values in of_sides[:MOST_COSTS]:
        points = [
            Point(shown.number[side.name], value, quality[side.name])
            for side, value in zip(shown.sides, values, strict=True)
            if value is not None and value >= 0
        ]
        if points:
            plotted.append(Figure(name, scatter(f"Mean quality by {name}", points, unit, scale), about))
    return plotted


def _speeds(shown: Shown, cells: Sequence[MatrixCell]) -> Iterable[tuple[str, Measure]]:
    """Task and measure of all measures of speed and size, in the order of the tasks."""
    kinds = {task.name: task.kind for task in shown.tasks}
    found = {
        (cell.task.name, measure.name): measure
        for cell in cells
        if kinds.get(cell.task.name) in ("speed", "size")
        for measure in cell.measures
    }
    for task in shown.tasks:
        yield from ((name, measure) for (name, _), measure in found.items() if name == task.name)
