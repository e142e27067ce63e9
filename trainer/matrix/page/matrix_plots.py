"""The plots of a matrix: bars with intervals, differences around zero, cost beside quality."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from teacher_cache.pages.svg_parts import rect, round_up, svg, text

WIDTH = 340
LABEL, VALUE = 146, 50  # widths of the columns of names and values
ROW = 19
STRIP_WIDTH, STRIP_HEIGHT = 130, 14


@dataclass(frozen=True)
class Bar:
    """A side's value on a task, in the units of its axis."""

    number: int  # of the side
    label: str
    value: float
    shown: str  # the value in words
    low: float | None = None
    high: float | None = None
    seeds: Sequence[float] = ()  # of each model of the side, if it has several


def bars(title: str, values: Sequence[Bar], chance: float | None = None, share: bool = False) -> Markup:
    """Horizontal bars from zero with intervals as whiskers, models of a side as dots, guessing as a dashed line.

    ``share``: the axis ends at 1 at most.
    """
    ends = [end for bar in values for end in (bar.value, bar.low, bar.high, *bar.seeds) if end is not None]
    largest = max([*ends, chance or 0.0])
    top = round_up(largest) if largest > 0 else 0.0
    if share:
        top = min(top, 1.0)
    bottom = -round_up(-min(ends)) if min(ends, default=0.0) < 0 else 0.0
    span = (top - bottom) or 1.0
    height = ROW * len(values) + 6

    def x(value: float) -> float:
        return LABEL + min(max((value - bottom) / span, 0.0), 1.0) * (WIDTH - LABEL - VALUE)

    parts = []
    for row, bar in enumerate(values):
        y = row * ROW + 4
        left, right = sorted((x(0.0), x(bar.value)))
        parts.append(text("tick", 12, y + 11, str(bar.number), "end"))
        parts.append(text("name", 19, y + 11, bar.label, "start"))
        parts.append(rect("bar", left, y, max(right - left, 1), ROW - 6))
        parts += [_dot("seed", x(seed), y + (ROW - 6) / 2, 1.8) for seed in bar.seeds]
        if bar.low is not None and bar.high is not None:
            parts += _whisker(x(bar.low), x(bar.high), y + (ROW - 6) / 2, 3)
        parts.append(text("value", WIDTH, y + 11, bar.shown, "end"))
    parts.append(_vertical("axis", x(0.0), height))
    if chance is not None:
        parts.append(_vertical("chance", x(chance), height))
    return svg(title, parts, WIDTH, height)


def difference_strip(title: str, difference: float, low: float, high: float, reach: float, better: str) -> Markup:
    """A difference and its interval around zero; the strip ends at ± ``reach``. ``better``: class of the marks."""

    def x(value: float) -> float:
        return STRIP_WIDTH / 2 + min(max(value / (reach or 1.0), -1.0), 1.0) * (STRIP_WIDTH / 2 - 4)

    middle = STRIP_HEIGHT / 2
    parts = [
        _vertical("axis", STRIP_WIDTH / 2, STRIP_HEIGHT),
        *_whisker(x(low), x(high), middle, 3),
        _dot("estimate", x(difference), middle, 3),
    ]
    return svg(title, parts, STRIP_WIDTH, STRIP_HEIGHT, f"strip {better}")


@dataclass(frozen=True)
class Point:
    """A side in a plot of cost and quality."""

    number: int
    cost: float
    quality: float


def scatter(title: str, points: Sequence[Point], unit: str, scale: float = 1.0) -> Markup:
    """Quality (a share) above cost, each point named by its side's number. Costs are shown divided by ``scale``."""
    width, height, left, right, top, bottom = 270, 190, 34, 22, 22, 32
    costs = [point.cost for point in points]
    qualities = [point.quality for point in points]
    end = round_up(max(costs) * 1.04) if max(costs) > 0 else 1.0
    low, high = _around(min(qualities), max(qualities))

    def x(cost: float) -> float:
        return left + cost / end * (width - left - right)

    def y(quality: float) -> float:
        return height - bottom - (quality - low) / (high - low) * (height - top - bottom)

    grid = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    parts = []
    for tick in (low, (low + high) / 2, high):
        parts.append(grid.format(left, width - right, f"{y(tick):.1f}", f"{y(tick):.1f}"))
        parts.append(text("tick", left - 5, y(tick) + 3.5, f"{100 * tick:.3g} %", "end"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        parts.append(text("tick", x(share * end), height - bottom + 14, f"{share * end / scale:,.4g}", anchor))
    parts.append(text("unit", width - right, height - 3, unit, "end"))
    parts.append(text("unit", 0, 10, "mean quality", "start"))
    labels: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: y(point.quality)):
        here, label = x(point.cost), y(point.quality) + 4
        label = max([label, *(above + 11 for beside, above in labels if abs(beside - here) < 20)])
        labels.append((here, label))
        parts.append(_dot("point", here, y(point.quality), 4))
        parts.append(text("name", here + 7, label, str(point.number), "start"))
    return svg(title, parts, width, height)


def _around(low: float, high: float) -> tuple[float, float]:
    """Whole tenths around shares, at least 0.1 apart and half a step away from both."""
    below, above = int(10 * low - 0.25), int(10 * high + 1.25)
    return max(below, 0) / 10, max(min(above, 10), below + 1) / 10


def _whisker(low: float, high: float, y: float, half: float) -> list[Markup]:
    line = Markup('<path class="whisker" d="M{} {}v{}m0 -{}H{}m0 -{}v{}"/>')
    return [line.format(f"{low:.1f}", f"{y - half:.1f}", 2 * half, half, f"{high:.1f}", half, 2 * half)]


def _vertical(name: str, x: float, height: float) -> Markup:
    return Markup('<path class="{}" d="M{} 0V{}"/>').format(name, f"{x:.1f}", height)


def _dot(name: str, x: float, y: float, radius: float) -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(name, f"{x:.1f}", f"{y:.1f}", radius)
