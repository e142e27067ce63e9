"""Interface of a side signal: a kind of data stored beside tokens and logits, its codec, batches, display and checks.

Nothing here loads torch, which reading a cache does not need; the engine's part is in the signal's ``capture``.
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
    """Comma-separated list of the first MOST_NUMBERS numbers."""
    return ", ".join(f"{number:g}" for number in numbers[:MOST_NUMBERS])


def rows_in_words(positions: Positions) -> str:
    """Description of the stored rows."""
    return positions if isinstance(positions, str) else f"every {positions.every}"


class SideCodec(Protocol[Coded]):
    """Encodes and decodes the samples of one cache. Must be thread-safe."""

    def encode(self, sample: Coded) -> bytes:
        """Encode the payload of one sample."""

    def decode(self, payload: bytes, num_tokens: int) -> Coded:
        """Decode the payload of a sample of ``num_tokens`` tokens. Raises CorruptCacheError."""


class Entries(NamedTuple):
    """Places of the N stored rows of a batch's samples, int64 [N] each."""

    batch_row: np.ndarray
    column: np.ndarray  # column in that row
    first_column: np.ndarray  # first column of the sample
    sample: np.ndarray  # index of the sample, in the order of the batch rows


class SideSignal(Generic[Settings, Sample, Batch]):
    """One side signal. ``Settings``: its field of ``CaptureConfig``; ``Sample``, ``Batch``: its record dataclasses.

    A sample's record has ``positions`` (int32 [P], ascending) and arrays of P rows. A batch's record has ``batch_row``
    and ``column`` of ``Entries``, optionally its other fields, and the samples' arrays under the same names.
    """

    batch: type[Batch]
    title: str  # noun phrase for displays
    has_ids = False  # holds token ids, coded with the shard's code table; implement ``ids``
    is_target = False  # a target of head losses, so every row in the loss mask must have it
    needs_head = False  # the cache must also hold the teacher's output head

    def check_teacher(self, name: str, settings: Settings, text_config: Any, max_tokens: int) -> None:
        """Raise UserError if a teacher of this configuration cannot provide the signal ``name`` with these settings.

        max_tokens: length of the longest sequence.
        """

    def in_words(self, settings: Settings, num_layers: int) -> str:
        """One-line description of what is stored, for a teacher of ``num_layers`` decoder layers."""
        raise NotImplementedError

    def codec(self, settings: Settings, manifest: Manifest, table: CodeTable | None) -> SideCodec[Sample]:
        """Codec of a cache; ``table``: code table of the shard, for signals with ``has_ids``."""
        raise NotImplementedError

    def empty(self, settings: Settings, manifest: Manifest) -> Sample:
        """Sample without rows, used for batches without samples."""
        raise NotImplementedError

    def tap(self, settings: Settings, num_layers: int) -> "Tap":
        """Tap that captures the signal from a teacher of ``num_layers`` decoder layers. Loads torch."""
        raise NotImplementedError

    def join(self, samples: Sequence[Sample], entries: Entries) -> Batch:
        """Join samples, whose rows are at ``entries``, into a batch."""
        arrays = {
            field.name: getattr(entries, field.name)
            if field.name in Entries._fields
            else np.concatenate([getattr(sample, field.name) for sample in samples])
            for field in fields(self.batch)  # type: ignore[arg-type]
        }
        return self.batch(**arrays)

    def arrays(self, batch: Batch, settings: Settings) -> dict[str, np.ndarray]:
        """Arrays [N, …] that ``teacher_cache.api`` returns for a batch, by suffix of the signal's name ("": none)."""
        raise NotImplementedError

    def shown(self, sample: Sample, settings: Settings, num_layers: int) -> Any:
        """Value that ``teacher_cache.api`` returns for a sample."""
        return sample

    def figures(self, sample: Sample, settings: Settings) -> dict[str, dict[int, Any]]:
        """Figures that ``cache-tools inspect`` shows for a sample: plain data by name and row."""
        return {}

    def alternatives(self, settings: Settings, channels: int) -> Iterator[Alternative]:
        """Alternative settings with other sizes, for a teacher with a hidden size of ``channels``."""
        return iter(())

    def ids(self, sample: Sample) -> np.ndarray:
        """All token ids of a sample with repetitions, [E]; the code table is built from their counts."""
        raise NotImplementedError

    def problem(self, sample: Sample, settings: Settings, manifest: Manifest) -> str:
        """Describe what is wrong with a decoded sample by itself; '' if nothing is."""
        return ""

    def contradictions(
        self, sample: Sample, logits: LogitsSample, settings: Settings, manifest: Manifest
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each kind of contradiction between a sample and its logits, with its rows of the sequence."""
        return iter(())

    def rebuilt_problem(self, sample: Sample, logits: LogitsSample, settings: Settings, head: "OutputHead") -> str:
        """Describe what is wrong with a sample given logits and head, like ``problem``; too slow for every sample."""
        return ""

    def check_captured(
        self, sample: Sample, logits: LogitsSample, settings: Settings, manifest: Manifest, head: "OutputHead"
    ) -> None:
        """Raise UserError if the first captured sample shows that this teacher cannot provide the signal."""
