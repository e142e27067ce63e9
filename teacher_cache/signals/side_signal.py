"""What a side signal is: how one kind of what is stored beside tokens and logits is coded, batched, shown and checked.

Nothing here loads torch, so that a cache is read without it; what an engine needs is in the signal's ``capture``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from schemas.cache_config import Positions
from schemas.manifest import Manifest
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.records import LogitsSample
from teacher_cache.signals.alternatives import Alternative

if TYPE_CHECKING:
    from teacher_cache.output_head import OutputHead
    from teacher_cache.signals.tap import Tap

MOST_NUMBERS = 50
Settings = TypeVar("Settings")
Sample = TypeVar("Sample")
Batch = TypeVar("Batch")
Coded = TypeVar("Coded")


def listed_numbers(numbers: Sequence[float]) -> str:
    """The first of them, in words."""
    return ", ".join(f"{number:g}" for number in numbers[:MOST_NUMBERS])


def rows_in_words(positions: Positions) -> str:
    """Which rows are stored."""
    return positions if isinstance(positions, str) else f"every {positions.every}"


class SideCodec(Protocol[Coded]):
    """Encodes and decodes the samples of one cache. Threads share it."""

    def encode(self, sample: Coded) -> bytes:
        """The payload of one sample."""

    def decode(self, payload: bytes, num_tokens: int) -> Coded:
        """The sample of ``num_tokens`` tokens that a payload holds. Raises CorruptCacheError."""


class Entries(NamedTuple):
    """Where the N stored rows of a batch's samples stand, int64 [N] each."""

    batch_row: np.ndarray
    column: np.ndarray  # token in that row
    first_column: np.ndarray  # of the sample
    sample: np.ndarray  # which of the batch's samples, counted in the order of its rows


class SideSignal(Generic[Settings, Sample, Batch]):
    """One side signal. ``Settings``: its field of ``CaptureConfig``; ``Sample``, ``Batch``: its records, dataclasses.

    A sample's record has ``positions`` (int32 [P], rising) and arrays of P rows. A batch's record has ``batch_row`` and
    ``column`` of ``Entries``, the others of ``Entries`` if it needs them, and the samples' arrays under their names.
    """

    batch: type[Batch]
    title: str  # what it is, as a noun
    has_ids = False  # holds token ids, which are coded with the shard's code table; then ``ids`` gives them
    is_target = False  # losses of the output head can learn from it, so that all rows that count must have it
    needs_head = False  # goes with the teacher's output head as a file of the cache

    def check_teacher(self, name: str, settings: Settings, text_config: Any, max_tokens: int) -> None:
        """Raise UserError if a teacher of this configuration cannot give the signal ``name``, as its settings ask.

        max_tokens: of the longest sequence.
        """

    def in_words(self, settings: Settings, num_layers: int) -> str:
        """What is stored, in a line, of a teacher of so many decoder layers."""
        raise NotImplementedError

    def codec(self, settings: Settings, manifest: Manifest, table: CodeTable | None) -> SideCodec[Sample]:
        """The codec of a cache; ``table``: of its shard, for signals that have ids."""
        raise NotImplementedError

    def empty(self, settings: Settings, manifest: Manifest) -> Sample:
        """A sample without a stored row: what a batch without samples is made of."""
        raise NotImplementedError

    def tap(self, settings: Settings, num_layers: int) -> "Tap":
        """What captures it in an engine, of a teacher of so many decoder layers. Loads torch."""
        raise NotImplementedError

    def join(self, samples: Sequence[Sample], entries: Entries) -> Batch:
        """The batch of these samples, whose rows stand at ``entries``."""
        arrays = {
            field.name: getattr(entries, field.name)
            if field.name in Entries._fields
            else np.concatenate([getattr(sample, field.name) for sample in samples])
            for field in fields(self.batch)  # type: ignore[arg-type]
        }
        return self.batch(**arrays)

    def arrays(self, batch: Batch, settings: Settings) -> dict[str, np.ndarray]:
        """What ``teacher_cache.api`` gives of a batch, [N, …]: under "" what bears the signal's name alone."""
        raise NotImplementedError

    def shown(self, sample: Sample, settings: Settings, num_layers: int) -> Any:
        """What ``teacher_cache.api`` gives of a sample."""
        return sample

    def figures(self, sample: Sample, settings: Settings) -> dict[str, dict[int, Any]]:
        """What ``cache-tools inspect`` shows of a sample: by name of a figure, plain data by row."""
        return {}

    def alternatives(self, settings: Settings, channels: int) -> Iterator[Alternative]:
        """Settings under which it takes more or less, for a teacher whose hidden states have so many channels."""
        return iter(())

    def ids(self, sample: Sample) -> np.ndarray:
        """All token ids that a sample holds, [E], as often as they occur: the code table follows from that."""
        raise NotImplementedError

    def problem(self, sample: Sample, settings: Settings, manifest: Manifest) -> str:
        """What is wrong with a sample by itself, though it can be decoded; '' if nothing is."""
        return ""

    def contradictions(
        self, sample: Sample, logits: LogitsSample, settings: Settings, manifest: Manifest
    ) -> Iterator[tuple[str, np.ndarray]]:
        """What of a sample its logits contradict, and the rows of the sequence at which they do."""
        return iter(())

    def rebuilt_problem(self, sample: Sample, logits: LogitsSample, settings: Settings, head: "OutputHead") -> str:
        """As ``problem``: what is wrong where head and logits are held against a sample; too slow for every sample."""
        return ""

    def check_captured(
        self, sample: Sample, logits: LogitsSample, settings: Settings, manifest: Manifest, head: "OutputHead"
    ) -> None:
        """Raise UserError if the first captured sample shows that this teacher cannot give a signal with a head."""
