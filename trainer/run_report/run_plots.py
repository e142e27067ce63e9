"""The plots of runs: one metric over steps, a curve and an envelope for each run."""

import math
from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from teacher_cache.pages.plot_axes import Frame, axes
from teacher_cache.pages.svg_parts import round_up, svg
from trainer.run_report.envelopes import Envelope

FRAME = Frame(340, 190, 44, 8, 22, 30)


def curves(title: str, unit: str, found: Mapping[int, Envelope], steps: tuple[int, int]) -> Markup:
    """Curves by the number of their run, over the first and last step of all runs."""
    low, high = limits(
        min(float(each.lows.min()) for each in found.values()), max(float(each.highs.max()) for each in found.values())
    )
    parts = axes(FRAME, steps, (low, high), "step", unit, label_x=step_label, label_y=value_label)
    for number, each in found.items():
        across = FRAME.x(0) + (each.steps - steps[0]) / max(steps[1] - steps[0], 1) * (FRAME.x(1) - FRAME.x(0))
        mean, bottom, top = (_heights(values, low, high) for values in (each.means, each.lows, each.highs))
        if not each.is_exact:
            there = _points(across, top) + _points(across[::-1], bottom[::-1])
            parts.append(Markup('<path class="envelope run-{}" d="M{}z"/>').format(number, "L".join(there)))
        if len(across) == 1:
            dot = Markup('<circle class="dot run-{}" cx="{}" cy="{}" r="3"/>')
            parts.append(dot.format(number, f"{across[0]:.1f}", f"{mean[0]:.1f}"))
        else:
            parts.append(Markup('<path class="curve run-{}" d="M{}"/>').format(number, "L".join(_points(across, mean))))
    line = Markup('<path class="cursor" d="M{} {}V{}"/>')
    parts.append(line.format(FRAME.left, FRAME.top, FRAME.height - FRAME.bottom))
    return svg(title, parts, FRAME.width, FRAME.height)


def limits(low: float, high: float) -> tuple[float, float]:
    """Round ends of an axis around the values; at zero if they begin near it."""
    if max(abs(low), abs(high)) < 1e-250:
        return 0.0, 1.0
    if low == high:
        low, high = (low - 0.5 * abs(low), high + 0.5 * abs(high))
    if 0 <= low <= 0.4 * high:
        return 0.0, round_up(high)
    rough = (high - low) / 4
    scale = 10.0 ** math.floor(math.log10(rough))
    unit = next(step * scale for step in (1, 2, 5, 10) if step * scale >= rough * (1 - 1e-9))
    return math.floor(low / unit + 1e-9) * unit, math.ceil(high / unit - 1e-9) * unit


def value_label(value: float) -> str:
    """A value of the vertical axis in few characters."""
    size = abs(value)
    if size >= 1000:
        return step_label(value) if size < 1e9 else f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    return "0" if size < 1e-12 else f"{value:.3g}".replace("e-0", "e-")


def step_label(value: float) -> str:
    """A step, with k and M for thousands and millions."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % (size / 100) == 0):
            return f"{value / size:.4g}{letter}"
    return f"{value:.0f}" if value == int(value) or abs(value) >= 10 else f"{value:.1f}"


def _heights(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return FRAME.y(0) + (values - low) / (high - low) * (FRAME.y(1) - FRAME.y(0))


def _points(x: np.ndarray, y: np.ndarray) -> list[str]:
    return [f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
