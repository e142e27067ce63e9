"""Resolution of a selection (signals, shards, layers, share of samples) to the parts of a cache's shards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from schemas.derivation import Selection
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest, MemberIndex, ShardEntry, ShardIndex, Signal
from teacher_cache.ahead import map_ahead
from teacher_cache.shards.marks import mark_name, read_index
from teacher_cache.shards.shard_table import signals_of
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.shards.tar import tar_bytes
from tools.checked_parts import Advance, Progress, unseen
from tools.making import derived
from tools.making.derived import bundles_of

SHARE_SEED = 1  # not 0, the trainer's for validation samples: a share should contain some of these too


@dataclass(frozen=True)
class ShardPart:
    """The selected part of a shard."""

    entry: ShardEntry  # with the chosen signals only
    rows: np.ndarray | None  # the samples' places in the shard, int32, increasing; None: all samples
    sizes: dict[Signal, int]  # bytes of the resulting tars

    @property
    def bytes(self) -> int:
        """Total bytes of the resulting tars."""
        return sum(self.sizes.values())


def share_numbers(keys: Iterable[str]) -> np.ndarray:
    """Hash keys to uniform numbers in [0, 1), float64, for ``Selection.share``."""
    hashes = np.array([xxhash.xxh3_64_intdigest(key.encode(), SHARE_SEED) for key in keys], np.uint64)
    return (hashes >> np.uint64(11)) * 2.0**-53


def canonical(selection: Selection, manifest: Manifest, url: str) -> Selection:
    """The selection in canonical form, so that equal parts of a cache have equal selections.

    Raises UserError when the cache lacks one of the signals.
    """
    changes: dict[str, Any] = {}
    if selection.signals is not None:
        stored = manifest.capture.signals
        missing = [signal for signal in selection.signals if signal not in stored]
        if missing:
            raise UserError(f"{url}: the cache has no signal {', '.join(missing)}; it has tokens, {', '.join(stored)}")
        chosen = [signal for signal in stored if signal in selection.signals]
        changes["signals"] = None if chosen == stored else chosen
    if selection.shards is not None:
        changes["shards"] = _joined(selection.shards)
    if selection.layers is not None:
        changes["layers"] = sorted(set(selection.layers))
    if selection.share == (0, 1):
        changes["share"] = None
    return selection.model_copy(update=changes)


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges sorted, with overlapping and adjacent ones joined."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def chosen_signals(selection: Selection, manifest: Manifest) -> tuple[Signal, ...]:
    """The selected signals, tokens first."""
    if selection.signals is None:
        return signals_of(manifest)
    return ("tokens", *selection.signals)


def settings_of(selection: Selection, manifest: Manifest) -> dict[str, Any]:
    """Changes to ``manifest`` for the part: without the settings of signals that are left out."""
    left_out = set(manifest.capture.signals) - set(chosen_signals(selection, manifest))
    capture = manifest.capture.model_copy(update=dict.fromkeys(left_out))
    return {"capture": capture, "head": None if "final" in left_out else manifest.head}


def chosen_parts(
    source: Storage, manifest: Manifest, selection: Selection, parallel: int, advance: Advance = unseen
) -> list[ShardPart]:
    """The selected part of each shard, without empty ones.

    ``manifest``: with its lists; ``selection``: in ``canonical`` form. Indexes are read only if samples are chosen.
    ``advance(shards done, shards in all)``. Raises UserError when nothing is selected, CorruptCacheError for a damaged
    index or manifest.
    """
    signals = chosen_signals(selection, manifest)
    shards = [entry for entry in manifest.shards if _in_ranges(entry, selection.shards)]
    if not shards:
        raise UserError(f"{source.url}: no shard is selected; {_shards_of(manifest)}")
    narrowed = [_narrowed(entry, signals, source) for entry in shards]
    if not selection.chooses_samples:
        return [_whole(entry) for entry in narrowed]
    progress, mix_layers = Progress(len(shards), advance), set[str]()

    def choose(entry: ShardEntry) -> ShardPart | None:
        index = read_index(source, manifest, entry)
        mix_layers.update(index.layers or ())
        rows = _rows(index, selection, source)
        progress.add(1)
        if len(rows) == len(index.keys):
            return _whole(entry)
        bundles = bundles_of([derived.ShardSlice(index, rows.tolist())])
        sizes = {signal: _tar_bytes(index.signals[signal], rows, bundles) for signal in entry.files}
        return ShardPart(entry, rows, sizes) if len(rows) else None

    found = list(map_ahead(choose, narrowed, parallel))
    unknown = [layer for layer in selection.layers or () if layer not in mix_layers]
    if unknown:
        raise UserError(
            f"{source.url}: no sample of layer {', '.join(unknown)}; its layers are {', '.join(sorted(mix_layers))}"
        )
    parts = [part for part in found if part is not None]
    if not parts:
        n_samples = sum(entry.samples for entry in shards)
        raise UserError(
            f"{source.url}: none of {n_samples} samples in {len(shards)} shards is selected; widen the selection"
        )
    return parts


def _narrowed(entry: ShardEntry, signals: Sequence[Signal], source: Storage) -> ShardEntry:
    """``entry`` with the files of ``signals`` only."""
    missing = [signal for signal in signals if signal not in entry.files]
    if missing:
        raise CorruptCacheError(f"{source.where(MANIFEST)}: {entry.name} has no file for {', '.join(missing)}")
    return entry.model_copy(update={"files": {signal: entry.files[signal] for signal in signals}})


def _in_ranges(entry: ShardEntry, ranges: list[tuple[int, int]] | None) -> bool:
    number = int(entry.name.removeprefix("shard-"))
    return ranges is None or any(start <= number <= stop for start, stop in ranges)


def _shards_of(manifest: Manifest) -> str:
    """The cache's shard numbers, for an error message."""
    if not manifest.shards:
        return "none is committed"
    numbers = [int(entry.name.removeprefix("shard-")) for entry in manifest.shards]
    return f"there are {len(numbers)}, numbered {min(numbers)} to {max(numbers)}"


def _rows(index: ShardIndex, selection: Selection, source: Storage) -> np.ndarray:
    """Places of the selected samples in the shard, int32, increasing."""
    chosen = np.ones(len(index.keys), bool)
    if selection.layers is not None:
        chosen &= np.isin(_layers(index, source), selection.layers)
    if selection.share is not None:
        numbers = share_numbers(index.keys)
        start, stop = selection.share
        chosen &= (numbers >= start) & (numbers < stop)
    return np.flatnonzero(chosen).astype(np.int32)


def _whole(entry: ShardEntry) -> ShardPart:
    return ShardPart(entry, None, {signal: file.bytes for signal, file in entry.files.items()})


def _tar_bytes(member: MemberIndex, rows: np.ndarray, bundles: Sequence[int] | None) -> int:
    return tar_bytes([member.sizes[row] for row in rows.tolist()], bundles)


def layers_of(source: Storage, manifest: Manifest, parallel: int) -> list[str]:
    """The layers of the data mix in a cache, sorted; reads all indexes. Raises UserError when these list none."""

    def layers(entry: ShardEntry) -> set[str]:
        return set(_layers(read_index(source, manifest, entry), source))

    return sorted(set().union(*map_ahead(layers, manifest.shards, parallel)))


def _layers(index: ShardIndex, source: Storage) -> list[str]:
    if index.layers is None:
        raise UserError(
            f"{source.where(mark_name(index.name))}: lists no layers of the data mix, so samples cannot be selected by "
            "layer; cache the teacher again with this version"
        )
    return index.layers
