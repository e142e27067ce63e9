"""Axes of plots with two numeric scales."""

from collections.abc import Callable
from typing import NamedTuple

from markupsafe import Markup

from teacher_cache.pages.svg_parts import text


class Frame(NamedTuple):
    """Size of a plot and the margins around what is plotted, in the SVG's units."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def x(self, share: float) -> float:
        """Where a share of the horizontal axis is."""
        return self.left + share * (self.width - self.left - self.right)

    def y(self, share: float) -> float:
        """Where a share of the vertical axis is, from below."""
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


def axes(
    frame: Frame,
    x: tuple[float, float],
    y: tuple[float, float],
    unit_x: str,
    unit_y: str,
    percent: bool = False,
    label_x: Callable[[float], str] = lambda value: f"{value:.3g}",
    label_y: Callable[[float], str] = lambda value: f"{value:.3g}",
) -> list[Markup]:
    """Grid lines and labels. x, y: ends of the axes. percent: vertical values are shares, shown as percent."""
    parts = []
    grid = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    for share in (0.0, 0.5, 1.0):
        height = frame.y(share)
        value = y[0] + share * (y[1] - y[0])
        parts.append(grid.format(frame.left, frame.width - frame.right, height, height))
        parts.append(text("tick", frame.left - 5, height + 3.5, _percent(value) if percent else label_y(value), "end"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        below = frame.height - frame.bottom + 13
        parts.append(text("tick", frame.x(share), below, label_x(x[0] + share * (x[1] - x[0])), anchor))
    parts.append(text("unit", frame.width - frame.right, frame.height - 3, unit_x, "end"))
    parts.append(text("unit", 0, 10, unit_y, "start"))
    return parts


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
