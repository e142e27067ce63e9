"""What a logger is: opened once, then given lines of metrics, then closed; and what it is told of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class LoggedRun:
    """What loggers are told of a run."""

    id: str  # the same when the run is resumed
    name: str
    project: str
    folder: Path  # of the output; local stores of loggers lie in it
    config: Mapping[str, Any]  # nested


class Line(NamedTuple):
    """One line of ``metrics.jsonl``."""

    step: int
    time: float  # seconds since the epoch
    values: dict[str, float]  # by the names that dashboards expect


class RunLogger(Protocol):
    """A logger of one run. All methods run in one thread; each may raise anything."""

    title: str

    def open(self) -> None:
        """Start the run, or continue the one with its id."""

    def write(self, lines: Sequence[Line]) -> None:
        """Log these lines."""

    def close(self, failed: bool) -> None:
        """End the run. failed: training was cut short by an error."""


def dashboard_names(logs: Mapping[str, Any]) -> dict[str, float]:
    """Rename metrics as dashboards expect: ``eval_kl`` to ``eval/kl``, ``loss`` to ``train/loss``."""
    return {_renamed(name): float(value) for name, value in logs.items() if isinstance(value, int | float)}


def _renamed(name: str) -> str:
    group, _, rest = name.partition("_")
    return f"eval/{rest}" if group == "eval" and rest else f"train/{name}"


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a nested configuration by dotted key; lists are values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
