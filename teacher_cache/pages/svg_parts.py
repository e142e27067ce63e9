"""Parts of plots: small SVGs without colours or fonts, which come from the style sheet. All text is escaped."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup


class Figure(NamedTuple):
    """A plot with title and caption."""

    title: str
    svg: Markup
    caption: str


def svg(title: str, parts: Sequence[Markup], width: float, height: float, name: str = "plot") -> Markup:
    """The whole plot; ``title``: what it shows, for those who do not see it, "" if text beside it says so; ``name``:
    its class.
    """
    spoken = Markup('role="img" aria-label="{}"').format(title) if title else Markup('aria-hidden="true"')
    return Markup('<svg class="{}" viewBox="0 0 {} {}" {}>{}</svg>').format(
        name, width, height, spoken, Markup("").join(parts)
    )


def rect(name: str, x: float, y: float, width: float, height: float) -> Markup:
    """A rectangle of class ``name``."""
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
        name, *(f"{value:.1f}" for value in (x, y, width, height))
    )


def text(name: str, x: float, y: float, words: str, anchor: str) -> Markup:
    """A text of class ``name`` whose ``anchor`` (start, middle, end) is at x, on the base line y."""
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        name, f"{x:.1f}", f"{y:.1f}", anchor, words
    )


def round_up(value: float) -> float:
    """The next larger round number with one or two digits, easily halved."""
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if step * scale >= value * (1 - 1e-9))
