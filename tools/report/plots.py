"""The plots of the report on a cache."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from teacher_cache.pages.plot_axes import Frame, axes
from teacher_cache.pages.svg_parts import rect, round_up, svg, text

WIDTH, HEIGHT = 270, 156
LEFT, RIGHT, TOP, BOTTOM = 34, 4, 22, 30  # margins, for axis labels
FRAME = Frame(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM)


def histogram(title: str, counts: np.ndarray, low: float, high: float, unit: str) -> Markup:
    """Histogram with equal bins from ``low`` to ``high``, as shares of the total."""
    shares = counts / max(1, counts.sum())
    top = round_up(float(shares.max(initial=0)) or 1.0)
    step = (WIDTH - LEFT - RIGHT) / len(shares)
    parts = axes(FRAME, (low, high), (0, top), unit, "share of rows", percent=True)
    for i, share in enumerate(shares.tolist()):
        if share:
            height = share / top * _plot_height()
            parts.append(rect("bar", LEFT + i * step + 0.5, HEIGHT - BOTTOM - height, step - 1, height))
    return svg(title, parts, WIDTH, HEIGHT)


def line(title: str, x: np.ndarray, y: np.ndarray, high_x: float, unit_x: str, unit_y: str) -> Markup:
    """A curve over ``x`` from 0 to ``high_x``."""
    top = round_up(float(y.max(initial=0)) or 1.0)
    parts = axes(FRAME, (0, high_x), (0, top), unit_x, unit_y)
    xs = LEFT + x / high_x * (WIDTH - LEFT - RIGHT)
    ys = HEIGHT - BOTTOM - y / top * _plot_height()
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(xs.tolist(), ys.tolist(), strict=True))
    parts.append(Markup('<polyline class="curve" points="{}"/>').format(points))
    return svg(title, parts, WIDTH, HEIGHT)


def bars(title: str, values: Sequence[tuple[str, float]], unit: str) -> Markup:
    """A horizontal bar for each name, with its value."""
    step, label = 21, 58
    height = step * len(values) + 4
    largest = max((value for _, value in values), default=0) or 1.0
    parts = []
    for i, (name, value) in enumerate(values):
        y = i * step + 4
        width = value / largest * (WIDTH - label - 62)
        parts.append(text("name", label - 6, y + 12, name, "end"))
        parts.append(rect("bar", label, y, max(width, 1), step - 6))
        parts.append(text("value", label + max(width, 1) + 5, y + 12, f"{value:,.1f} {unit}", "start"))
    return svg(title, parts, WIDTH, height)


def strip(title: str, quantiles: dict[str, float], high: float) -> Markup:
    """Box plot for a table row: whiskers from the 5th to the 95th percentile, box of the quartiles, median as a dot."""
    width, height = 120, 14

    def x(value: float) -> float:
        return 3 + min(value / high, 1) * (width - 6)

    line_of = Markup('<line class="{}" x1="{}" x2="{}" y1="7" y2="7"/>')
    parts = [
        line_of.format("whisker", f"{x(quantiles['p05']):.1f}", f"{x(quantiles['p95']):.1f}"),
        line_of.format("box", f"{x(quantiles['p25']):.1f}", f"{x(quantiles['p75']):.1f}"),
        Markup('<circle class="median" cx="{}" cy="7" r="3"/>').format(f"{x(quantiles['p50']):.1f}"),
    ]
    return svg(title, parts, width, height, "strip")


def rebinned(counts: np.ndarray, high: float, low: float, shown_high: float, bins: int) -> np.ndarray:
    """Rebin the histogram ``counts`` over 0 … ``high`` to ``bins`` bins over ``low`` … ``shown_high``, clipped."""
    middles = (np.arange(len(counts)) + 0.5) * high / len(counts)
    new_bins = np.clip((middles - low) / (shown_high - low) * bins, 0, bins - 1).astype(np.int64)
    return np.bincount(new_bins, counts, minlength=bins)


def _plot_height() -> int:
    return HEIGHT - TOP - BOTTOM
