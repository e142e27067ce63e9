"""What a step of a curation is. Local steps look at one record at a time, global ones at sketches of all.

A step is built from its settings in every process that applies it, so a constructor is cheap: it checks what can be
checked without reading much, and models or indexes are loaded when first used. ``steps_table.py`` lists the classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from teacher_cache.curation.record import Record


@dataclass(frozen=True)
class StepPlace:
    """Where a step stands: its key in the configuration (``steps.3``), for messages, and what all steps share."""

    key: str
    tokenizer: str  # path, ``tokenizer.path`` of the configuration
    layers: tuple[str, ...]  # of the sources, sorted
    scratch: str | None = None  # folder for temporary files; None: the system's


class Step:
    """What both kinds share."""

    def fingerprint(self) -> str:
        """Names the content of files that the settings name (evaluation sets, a model): sha256, hex; "": none.

        A curation that was begun with other files is refused. Raises UserError if they cannot be read.
        """
        return ""


class LocalStep(Step, ABC):
    """A step that judges each record by itself: a function of the record and the settings, of nothing else."""

    def changed(self, records: Sequence[Record]) -> list[Record]:
        """The records with repaired texts (``Record.rewritten``) or more flags (``with_flags``), in the same order.

        Called before ``reasons``; a record whose text changed is counted again.
        """
        return list(records)

    @abstractmethod
    def reasons(self, records: Sequence[Record]) -> list[str]:
        """Why each record leaves, a word or two (``too_long``); "": it stays."""


@dataclass(frozen=True)
class Table:
    """Columns of the records that reach a global step, in the order of the input; arrays may be memory-mapped."""

    number_N: np.ndarray  # int64, in the input
    source_N: np.ndarray  # int32, index into the configuration's sources
    layer_N: np.ndarray  # int32, index into ``layers``
    n_tokens_N: np.ndarray  # int64, tokens that count
    layers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.number_N)


@dataclass(frozen=True)
class Decision:
    """What a global step decided: ``code_N`` uint8, 0 for records that stay, otherwise 1 + an index into ``reasons``.

    ``notes`` go into the report: plain data for JSON (thresholds, tokens by layer), a function of the input alone.
    """

    code_N: np.ndarray
    notes: Mapping[str, Any] = field(default_factory=dict)


class GlobalStep(Step, ABC):
    """A step that compares records: first a sketch of each, batch by batch, then one decision over all sketches."""

    reasons: tuple[str, ...]  # why records leave
    one_process: bool = False
    """Sketches are made by one process of its own instead of by all workers: a model on a device."""

    @abstractmethod
    def sketch(self, records: Sequence[Record]) -> np.ndarray:
        """Sketches, [N, …], of one dtype (without objects) and width; each a function of its record alone."""

    @abstractmethod
    def decide(self, sketch_N: np.ndarray, table: Table) -> Decision:
        """Decide over all records. ``sketch_N``, [N, …], is memory-mapped: 10⁷ rows need not fit in memory."""
