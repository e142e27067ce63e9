"""Options that select a part of a cache, and the parsing of their values."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

import click

from schemas.errors import UserError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s*%")


def selection_options(command: Decorated) -> Decorated:
    """Add the options that select a part of a cache, passed as ``signals``, ``shards``, ``layers``, ``sample``."""
    for option in (
        click.option(
            "--sample", metavar="PERCENT", help="This fraction of the samples, always the same ones, e.g. 1%."
        ),
        click.option("--layer", "layers", multiple=True, help="Samples of this layer of the data mix. Repeatable."),
        click.option("--shards", metavar="RANGES", help="Shards by number, e.g. 0-99,200."),
        click.option(
            "--signals",
            metavar="NAMES",
            help="These signals, e.g. logits,hidden; tokens and logits are always included.",
        ),
    ):
        command = option(command)
    return command


def parse_selection(signals: str | None, shards: str | None, layers: tuple[str, ...], sample: str | None) -> Any:
    """The ``Selection`` of these options, or None if none is given. Raises UserError."""
    from schemas.derivation import Selection

    if signals is None and shards is None and not layers and sample is None:
        return None
    return Selection(
        signals=None if signals is None else _signals(signals),
        shards=None if shards is None else _ranges(shards),
        layers=list(layers) or None,
        share=None if sample is None else (0.0, float(percent(sample, "--sample"))),
    )


def _signals(text: str) -> list[Any]:
    from schemas.cache_config import captured_signals

    names = [name.strip() for name in text.split(",")]
    wrong = [name for name in names if name not in ("tokens", *captured_signals())]
    if wrong:
        raise UserError(f"--signals {text}: {wrong[0]!r} is not a signal; choose from {', '.join(captured_signals())}")
    return ["logits", *(name for name in dict.fromkeys(names) if name not in ("tokens", "logits"))]


def _ranges(text: str) -> list[tuple[int, int]]:
    ranges = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or int(match[1]) > int(match[2] or match[1]):
            raise UserError(f"--shards {text}: {part!r} is not a number or range; use for example 0-99,200")
        ranges.append((int(match[1]), int(match[2] or match[1])))
    return ranges


def percent(text: str, option: str) -> Decimal:
    """Parse a percentage like ``2.5%`` as a fraction in (0, 1]. Raises UserError."""
    match = _PERCENT.fullmatch(text.strip())
    if match is None or not 0 < Decimal(match[1]) <= 100:
        raise UserError(f"{option} {text}: expected a percentage above 0% and up to 100%, for example 1%")
    return Decimal(match[1]) / 100


def parse_parts(text: str) -> dict[str, Decimal]:
    """Parse shares by name, like ``train=90%,validation=10%``. Raises UserError."""
    parts: dict[str, Decimal] = {}
    for part in text.split(","):
        name, equals, share = part.strip().partition("=")
        if not equals or not name or name in parts:
            raise UserError(
                f"--parts {text}: {part!r}: expected distinct names with shares, for example train=90%,validation=10%"
            )
        parts[name] = percent(share, f"--parts {text}:")
    return parts
