"""The capture of one forward pass ("step"), common to the engines: all sequences' wanted rows are reduced together.

Small teachers take milliseconds a step, in which every synchronisation of the host with the device is a stall. So the
number of synchronisations does not depend on the number of sequences: the indices of all rows are uploaded at once,
each layer is indexed and reduced once for each signal, and all results are downloaded together at the end. Attention
rows are reduced by sequence, which is not a synchronisation.

Tensor-parallel ranks that all have the logits share the rows: each reduces a contiguous part of every chunk.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from schemas.cache_config import LogitsCapture
from teacher_cache.engines.transfers import to_device, to_host
from teacher_cache.records import Captured, Request
from teacher_cache.signals.logits.capture import LogitsRows, reduce_logits, to_sample
from teacher_cache.signals.tap import SequenceQueryKey, Tap

LOGITS = "logits"


class StepSequence(NamedTuple):
    """A sequence of the step: rows ``start`` to ``stop`` of the flat batch."""

    number: int
    request: Request
    start: int
    stop: int


@dataclass
class CapturedSequence:
    """One rank's captured pieces of one sequence, on the host."""

    logits: LogitsRows | None = None  # on ranks that have logits; of its share of the rows
    from_logits: dict[str, Any] = field(default_factory=dict)  # pieces of side signals, of the same rows
    places: np.ndarray | None = None  # int64; which of the sequence's logits rows these are
    side: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))  # other pieces of side signals

    def detached(self) -> "CapturedSequence":
        """A copy with memory of its own: pickling a view of a tensor sends all of the tensor."""
        logits = None if self.logits is None else _copy(self.logits)
        from_logits = {name: _copy(piece) for name, piece in self.from_logits.items()}
        side = {name: [_copy(piece) for piece in pieces] for name, pieces in self.side.items()}
        return CapturedSequence(logits, from_logits, self.places, side)


class Shares(NamedTuple):
    """This rank's number among those that share the rows of the logits."""

    rank: int = 0
    world: int = 1

    def of(self, n_rows: int) -> slice:
        """This rank's rows of a chunk: contiguous parts of nearly equal size, in the order of ranks."""
        return slice(n_rows * self.rank // self.world, n_rows * (self.rank + 1) // self.world)


class Step:
    """Collects the pieces of one step on the device; ``finish`` downloads them."""

    def __init__(self, sequences: Sequence[StepSequence], taps: Mapping[str, Tap], device: torch.device) -> None:
        """Upload the indices of all wanted rows of the flat batch."""
        self.sequences = sequences
        self._taps = taps
        wanted = {LOGITS: [one.request.logits_positions for one in sequences]} | {
            name: [one.request.positions(name) for one in sequences]
            for name, tap in taps.items()
            if tap.layers or tap.reads_final or tap.query_key_layer is not None
        }
        self._counts = {name: [len(positions) for positions in of_name] for name, of_name in wanted.items()}
        starts = [one.start for one in sequences]
        flat = [
            start + positions.astype(np.int64)
            for of_name in wanted.values()
            for start, positions in zip(starts, of_name, strict=True)
        ]
        rows = to_device(np.concatenate([np.empty(0, np.int64), *flat]), device)
        self._rows = dict(zip(wanted, rows.split([sum(counts) for counts in self._counts.values()]), strict=True))
        self._inputs = {
            name: to_device(np.concatenate([tap.row_inputs(one.request) for one in sequences]), device)
            for name, tap in taps.items()
            if tap.reads_logits and sequences
        }
        self._pieces: list[tuple[str, Any]] = []  # of the wanted rows of all sequences
        self._pieces_of: list[tuple[int, str, Any]] = []  # of the sequence with this index
        self._logits: tuple[LogitsRows, dict[str, Any]] | None = None
        self._mine = np.empty(0, np.int64)  # rows that this rank reduced

    def layer(self, number: int, stream_ND: torch.Tensor) -> None:
        """Reduce the residual stream after a decoder layer, all tokens of the flat batch."""
        for name, tap in self._taps.items():
            if number in tap.layers:
                self._pieces.append((name, tap.from_layer(stream_ND.index_select(0, self._rows[name]))))

    def final(self, final_ND: torch.Tensor) -> None:
        """Reduce the final hidden state, all tokens of the flat batch."""
        for name, tap in self._taps.items():
            if tap.reads_final:
                self._pieces.append((name, tap.from_final(final_ND.index_select(0, self._rows[name]))))

    def query_key(self, number: int, seen: Callable[[StepSequence], SequenceQueryKey]) -> None:
        """Reduce q and k of a decoder layer; ``seen`` gives those of a sequence."""
        for name, tap in self._taps.items():
            if number != tap.query_key_layer:
                continue
            for index, rows_P in enumerate(self._rows[name].split(self._counts[name])):
                one = self.sequences[index]
                self._pieces_of.append((index, name, tap.from_query_key(seen(one), rows_P - one.start)))

    def logits(
        self,
        ids_N: torch.Tensor,
        compute: Callable[[torch.Tensor], torch.Tensor | None],
        capture: LogitsCapture,
        chunk_rows: int,
        shares: Shares,
    ) -> None:
        """Reduce the rows of logits, ``chunk_rows`` at a time.

        Args:
            ids_N: token ids of the flat batch.
            compute: gives the logits [n, V] of rows [n] of the flat batch; None on ranks that have none.
            capture: settings of the logits signal.
            chunk_rows: rows of logits that exist at a time.
            shares: the ranks that all have the logits.
        """
        rows_N = self._rows[LOGITS]
        next_N = ids_N.roll(-1)[rows_N]
        parts: list[LogitsRows] = []
        pieces: dict[str, list[Any]] = {name: [] for name in self._inputs}
        mine: list[np.ndarray] = []
        for start in range(0, len(rows_N), chunk_rows):
            chunk_n = rows_N[start : start + chunk_rows]
            logits_nV = compute(chunk_n)
            share = shares.of(len(chunk_n))
            if logits_nV is None or share.start == share.stop:
                continue
            at = slice(start + share.start, start + share.stop)
            mine.append(np.arange(at.start, at.stop))
            parts.append(reduce_logits(logits_nV[share], next_N[at], capture.k, capture.temperatures))
            for name, inputs in self._inputs.items():
                pieces[name].append(self._taps[name].from_logits(logits_nV[share], parts[-1].ids_NK, inputs[at]))
        if parts:
            self._mine = np.concatenate(mine)
            self._logits = _joined(parts), {name: _joined(chunks) for name, chunks in pieces.items()}

    def finish(self) -> dict[int, CapturedSequence]:
        """Download everything. Returns the pieces of each sequence by its number."""
        logits, from_logits = self._logits or (None, {})
        pieces = [
            *(piece for _, piece in self._pieces),
            *(piece for _, _, piece in self._pieces_of),
            *([] if logits is None else [logits, *from_logits.values()]),
        ]
        downloaded = iter(_on_host(pieces))
        captured = [CapturedSequence() for _ in self.sequences]
        for name, _ in self._pieces:
            for one, piece in zip(captured, _split(next(downloaded), self._counts[name]), strict=True):
                one.side[name].append(piece)
        for index, name, _ in self._pieces_of:
            captured[index].side[name].append(next(downloaded))
        if logits is not None:
            ends = np.cumsum([0, *self._counts[LOGITS]])
            edges = np.searchsorted(self._mine, ends)
            counts = np.diff(edges).tolist()
            for index, (one, rows) in enumerate(zip(captured, _split(next(downloaded), counts), strict=True)):
                one.logits, one.places = rows, self._mine[edges[index] : edges[index + 1]] - ends[index]
            for name in from_logits:
                for one, piece in zip(captured, _split(next(downloaded), counts), strict=True):
                    one.from_logits[name] = piece
        return {one.number: found for one, found in zip(self.sequences, captured, strict=True)}


def to_captured(
    request: Request, ranks: Sequence[CapturedSequence], taps: Mapping[str, Tap], capture: LogitsCapture
) -> Captured:
    """Record of one sequence from the pieces of all ranks. Raises RuntimeError if rows are missing."""
    sharing = [rank for rank in ranks if rank.logits is not None]
    places = [rank.places for rank in sharing if rank.places is not None]
    if not np.array_equal(np.sort(np.concatenate([*places, []])), np.arange(len(request.logits_positions))):
        raise RuntimeError(f"a sequence of {len(request.input_ids)} tokens was not captured in one step")
    side = {}
    for name, tap in taps.items():
        pieces = [piece for rank in ranks for piece in rank.side.get(name, [])]
        if tap.reads_logits:
            pieces.append(_merged([rank.from_logits[name] for rank in sharing], places))
        side[name] = tap.sample(request.positions(name), pieces)
    rows: LogitsRows = _merged([rank.logits for rank in sharing], places)
    return Captured(to_sample(rows, request, capture), side, rows.entropy_N.numpy())


def _merged(parts: Sequence[Any], places: Sequence[np.ndarray]) -> Any:
    """Join the ranks' NamedTuples of rows in the order of the rows; ``places``: each rank's rows."""
    if len(parts) == 1:
        return parts[0]
    order = torch.from_numpy(np.argsort(np.concatenate(places)))
    return type(parts[0])(*(torch.cat(column)[order] for column in zip(*parts, strict=True)))


def _copy(piece: Any) -> Any:
    return type(piece)(*(part.clone() for part in piece))


def _joined(parts: Sequence[Any]) -> Any:
    """Concatenate NamedTuples of tensors along their rows."""
    return parts[0] if len(parts) == 1 else type(parts[0])(*(torch.cat(c) for c in zip(*parts, strict=True)))


def _split(piece: Any, counts: Sequence[int]) -> Iterable[Any]:
    """Cut a NamedTuple of tensors along its rows."""
    columns = [column.split(list(counts)) for column in piece]
    return (type(piece)(*of_sequence) for of_sequence in zip(*columns, strict=True))


def _on_host(pieces: Sequence[Any]) -> list[Any]:
    """Download the tensors of all these NamedTuples together."""
    host = iter(to_host([part for piece in pieces for part in piece]))
    return [type(piece)(*(next(host) for _ in piece)) for piece in pieces]
