"""A cache as a Python sequence of samples: open it, index it by position or key, iterate, take batches.

>>> from teacher_cache.api import open_cache
>>> cache = open_cache(url)                       # a folder, or any fsspec URL
>>> len(cache), cache.manifest.teacher.name
(5, 'synthetic')
>>> sample = cache[0]                             # signals are decoded on first access
>>> cache[sample.key].position, sample.key in cache, "no such key" in cache
(0, True, False)
>>> sample.text[:3], sample.input_ids.dtype, len(sample)
('⟨9⟩', dtype('uint32'), 9)
>>> sample.logits.ids.shape, sample.logits.log_partition.shape    # [P, K], [P, T]
((8, 8), (8, 2))
>>> bool(sample.probabilities(temperature=3.0).sum(axis=1).max() < 1)   # other tokens have the rest
True
>>> [len(sample) for sample in cache[1:3]]
[5, 7]
>>> batch = cache.batch(cache.keys()[:2], temperature=3.0)        # torch tensors, padded
>>> batch["input_ids"].shape, batch["probabilities"].shape
(torch.Size([2, 9]), torch.Size([2, 9, 8]))

Row t of every signal is the teacher's after reading tokens 0..t: it predicts token t + 1. ``positions`` of a signal
lists the stored rows. A cache is a map-style data set for ``torch.utils.data.DataLoader`` (with
``collate_fn=cache.collate``) and pickled to its workers. Importing this module loads neither torch nor an engine.

Shape letters: S tokens of a sequence, P stored rows, K entries a row, T temperatures, C layers, D channels, R samples
of a batch, L their padded length.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import xxhash

from schemas.errors import UserError
from schemas.manifest import Manifest, Signal
from teacher_cache.ahead import map_ahead
from teacher_cache.records import LogitsSample, RowBatch, TokenSample
from teacher_cache.shards.marks import up_to_date_manifest
from teacher_cache.shards.reader import DECODE_AHEAD, DECODE_THREADS, CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.signals.attention.record import AttentionSample
from teacher_cache.signals.draws.record import DrawsSample
from teacher_cache.signals.hidden.record import HiddenStates
from teacher_cache.signals.side_table import SIDE_SIGNALS
from teacher_cache.trust.required import Required, required_manifest

if TYPE_CHECKING:
    import torch

INDEXES_AT_A_TIME = 64  # shards whose indexes are fetched concurrently when all keys are read


def open_cache(
    url: str,
    signals: Sequence[str] | None = None,
    copies: tuple[str, int] | None = None,
    digest: str | None = None,
    require_signature: str | Sequence[str] = (),
) -> "Cache":
    """Open a cache for reading.

    Args:
        url: a folder or any fsspec URL; of a cache that is still being written, the committed shards are read.
        signals: signals to read beside the tokens, e.g. ``["logits"]``; files of others are not opened. None: all of
            the cache's.
        copies: a folder for local copies of a remote cache's shards, and their limit in bytes.
        digest: required sha256 (hex) of the manifest, as ``cache-tools inspect`` shows it.
        require_signature: key that must have signed the cache: a trusted name, 64 hex digits or a ``.pub`` file; of
            several, all must have. With it or ``digest``, all data read is verified against the manifest by sha256.

    Raises:
        UserError: there is no cache, its digest differs, it lacks a signal, or its store cannot be read.
        CorruptCacheError: its manifest, a signature or a file's size is wrong. Reading raises it for damaged payloads.
    """
    if isinstance(signals, str):
        raise UserError(f"signals: {signals!r} is a string; give a list, for example ['logits']")
    keys = (require_signature,) if isinstance(require_signature, str) else tuple(require_signature)
    required = Required(digest, keys)
    storage = Storage(url)
    manifest = required_manifest(storage, required) if required else up_to_date_manifest(storage)
    wanted = manifest.capture.signals if signals is None else [signal for signal in signals if signal != "tokens"]
    chosen: tuple[Signal, ...] = ("tokens", *wanted)
    return Cache(CacheReader(url, chosen, manifest, copies, bound=bool(required)))


class Cache:
    """The samples of a cache, in stored order. Created by ``open_cache``."""

    def __init__(self, reader: CacheReader) -> None:
        self._reader = reader
        self._first = np.concatenate([[0], np.cumsum(reader.shard_sizes)])

    @property
    def manifest(self) -> Manifest:
        """Metadata of the cache: teacher, tokenizer, corpus, signals and precision."""
        return self._reader.manifest

    @property
    def url(self) -> str:
        """Folder or URL of the cache."""
        return self._reader.url

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The signals that are read."""
        return self._reader.signals

    def __len__(self) -> int:
        return len(self._reader)

    @overload
    def __getitem__(self, at: int | str) -> "Sample": ...
    @overload
    def __getitem__(self, at: slice) -> "list[Sample]": ...

    def __getitem__(self, at: Any) -> Any:
        """A sample by position (negative: from the end) or key; a list of samples by a slice of positions.

        Raises IndexError or KeyError if there is none.
        """
        if isinstance(at, slice):
            return [Sample(self._reader, position) for position in range(*at.indices(len(self)))]
        if isinstance(at, str):
            return Sample(self._reader, self.position(at))
        position = int(at) + len(self) if at < 0 else int(at)
        if not 0 <= position < len(self):
            raise IndexError(f"sample {at} of {len(self)}")
        return Sample(self._reader, position)

    def __iter__(self) -> Iterator["Sample"]:
        return (Sample(self._reader, position) for position in range(len(self)))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not None

    def keys(self) -> list[str]:
        """The keys of all samples, in order. Reads every index, once."""
        return list(self._reader.keys)

    def position(self, key: str) -> int:
        """Position of the sample ``key``. Raises KeyError. The first call reads all indexes."""
        found = self._find(key)
        if found is None:
            raise KeyError(f"{self.url}: no sample {key!r} among {len(self)}")
        return found

    def batch(
        self, samples: Sequence[int | str], temperature: float | None = None, length: int | None = None
    ) -> "dict[str, torch.Tensor]":
        """The samples of these keys or positions as tensors, padded to the longest or to ``length`` tokens.

        Returns:
            ``input_ids`` int64 [R, L] (0 in the padding), ``position_ids`` int64 [R, L], ``attention_mask`` and
            ``loss_mask`` bool [R, L]; with logits ``ids`` int64 [R, L, K], ``logprobs`` float32 [R, L, K] (-inf where
            nothing is stored), ``next_logprob`` float32 [R, L] (NaN there), ``log_partition`` float32 [R, L, T]; with a
            ``temperature`` also ``probabilities`` float32 [R, L, K] (0 there), which sum to less than 1.
            For each other signal the N stored rows of the batch and their indices in it, ``{signal}_row`` and
            ``{signal}_column`` int64 [N]: ``hidden`` float32 [N, C, D]; ``final`` float32 [N, D]; ``draws`` int64
            [N, T, M] and ``draws_entropy`` float32 [N, T]; ``attention`` float32 [N, H, M] and ``attention_keys`` int64
            [N, H, M].

        Raises UserError for a temperature that is not stored, ValueError if a sample is longer than ``length``.
        """
        return self._batch(samples, temperature, length)

    def batches(
        self, batches: Iterable[Sequence[int | str]], temperature: float | None = None, length: int | None = None
    ) -> "Iterator[dict[str, torch.Tensor]]":
        """``batch`` of each, in order; a few threads decode the following ones in the background.

        >>> from teacher_cache.api import open_cache
        >>> cache = open_cache(url, signals=["logits"])
        >>> [len(batch["input_ids"]) for batch in cache.batches([[4, 0], [1, 3], [2]])]
        [2, 2, 1]
        """
        return map_ahead(
            lambda samples: self._batch(samples, temperature, length, 1), batches, DECODE_THREADS, DECODE_AHEAD
        )

    def _batch(
        self, samples: Sequence[int | str], temperature: float | None, length: int | None, threads: int | None = None
    ) -> "dict[str, torch.Tensor]":
        positions = [self.position(at) if isinstance(at, str) else range(len(self))[at] for at in samples]
        if temperature is not None:
            _need(self._reader, "logits")
        rows = self._reader.read_rows([[position] for position in positions], length, threads)
        batch = _by_token(rows, self._reader)
        if temperature is not None:
            batch["probabilities"] = _softened(rows.logprobs, rows.log_partition, temperature, self.manifest)
        for name, stored, arrays in _by_stored_row(rows, self.manifest):
            batch |= {f"{name}_row": stored.batch_row, f"{name}_column": stored.column, **arrays}
        return _tensors(batch)

    def collate(self, samples: Sequence["Sample"]) -> "dict[str, torch.Tensor]":
        """``batch`` of these samples: a ``collate_fn`` for a DataLoader over this cache."""
        return self.batch([sample.position for sample in samples])

    def close(self) -> None:
        """Close files and threads; reading again reopens them."""
        self._reader.close()

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_reader": self._reader, "_first": self._first}

    def __repr__(self) -> str:
        teacher = self.manifest.teacher.name
        return f"Cache({self.url!r}: {len(self)} samples of {teacher}, signals {', '.join(self.signals)})"

    @cached_property
    def _by_hash(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all keys, uint64, ascending, and the samples' positions: 16 bytes per sample, whatever the keys."""
        hashes = np.empty(len(self), np.uint64)
        n_shards = len(self._first) - 1
        for start in range(0, n_shards, INDEXES_AT_A_TIME):
            shards = range(start, min(start + INDEXES_AT_A_TIME, n_shards))
            self._reader.load_indexes(shards)
            for shard in shards:
                keys = self._reader.index(shard).keys
                hashes[self._first[shard] : self._first[shard + 1]] = [_hash(key) for key in keys]
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def _find(self, key: str) -> int | None:
        hashes, positions = self._by_hash
        digest = np.uint64(_hash(key))
        start, stop = np.searchsorted(hashes, digest, "left"), np.searchsorted(hashes, digest, "right")
        for position in positions[start:stop].tolist():
            if _key(self._reader, self._first, position) == key:
                return position
        return None


class Sample:
    """One sequence and the teacher's signals; each signal is read and decoded on first access.

    Raises UserError for a signal that is not stored or that the cache was opened without, CorruptCacheError for a
    damaged payload.
    """

    def __init__(self, reader: CacheReader, position: int) -> None:
        self._reader = reader
        self.position = position
        """Index of the sample in the cache."""

    def __len__(self) -> int:
        """S, the number of tokens."""
        return len(self.input_ids)

    @property
    def key(self) -> str:
        """The sample's key, unique in the cache."""
        return self.tokens.key

    @property
    def source_id(self) -> str:
        """The record of the corpus that it comes from."""
        return self.tokens.source_id

    @property
    def layer(self) -> str:
        """The layer of the data mix."""
        return self.tokens.layer

    @property
    def text(self) -> str:
        """The text of the tokens."""
        return self.tokens.text

    @property
    def input_ids(self) -> np.ndarray:
        """uint32 [S]."""
        return self.tokens.input_ids

    @property
    def loss_mask(self) -> np.ndarray:
        """bool [S]; True at t: the prediction of token t + 1 is trained on."""
        return self.tokens.loss_mask

    @cached_property
    def tokens(self) -> TokenSample:
        """The tokens signal, with each token's byte span in the text."""
        return self._reader.read_tokens(self.position)

    @cached_property
    def logits(self) -> LogitsSample:
        """Next-token distributions of the P stored rows.

        ``positions`` int32 [P]; ``counts`` int32 [P]: entries per row; ``ids`` int32 [P, K] and ``logprobs`` float32
        [P, K], nats, descending, 0 and -inf beyond a row's count; ``next_logprob`` float32 [P]: of the next token, NaN
        at the last; ``log_partition`` float32 [P, T]: log Σ_v p(v)^(1/temperature).
        """
        _need(self._reader, "logits")
        return self._reader.read_logits(self.position)

    @cached_property
    def draws(self) -> DrawsSample:
        """Tokens drawn from the rows' distributions: ``positions`` int32 [P], ``ids`` int32 [P, T, M], ``entropy``."""
        return self.read("draws")

    @cached_property
    def attention(self) -> AttentionSample:
        """Attention rows: ``positions`` int32 [P], ``heads`` int32 [H], ``weights`` and ``keys`` [P, H, M]."""
        return self.read("attention")

    @cached_property
    def hidden(self) -> HiddenStates:
        """Hidden states after the stored layers, float32 [P, C, D]. Loads torch."""
        return self.read("hidden")

    @cached_property
    def final(self) -> HiddenStates:
        """Final hidden states, after the last norm, float32 [P, D]. Loads torch."""
        return self.read("final")

    def read(self, signal: str) -> Any:
        """A signal other than tokens and logits, by name."""
        _need(self._reader, signal)
        manifest = self._reader.manifest
        sample, settings = self._reader.read(self.position, signal), manifest.capture.side_settings[signal]
        return SIDE_SIGNALS[signal].shown(sample, settings, manifest.teacher.num_layers)

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """Probabilities of the stored entries at a stored temperature, float32 [P, K]; other tokens have the rest.

        Raises UserError for a temperature without stored log-partitions.
        """
        return _softened(self.logits.logprobs, self.logits.log_partition, temperature, self._reader.manifest)

    def to_torch(self) -> "dict[str, torch.Tensor]":
        """All signals that the cache was opened with, as tensors.

        As ``Cache.batch``, with [S, …] in place of [R, L, …], and ``{signal}_positions`` int64 [N] in place of row and
        column.
        """
        rows = self._reader.read_rows([[self.position]])
        arrays = {name: array[0] for name, array in _by_token(rows, self._reader).items()}
        for name, stored, values in _by_stored_row(rows, self._reader.manifest):
            arrays |= {f"{name}_positions": stored.column, **values}
        return _tensors(arrays)

    def __repr__(self) -> str:
        return f"Sample({self.position}, {self.key!r}, {len(self)} tokens, {self.text[:40]!r})"


def _need(reader: CacheReader, signal: Signal) -> None:
    """Raise UserError unless the cache was opened with ``signal``."""
    if signal in reader.signals:
        return
    if signal in reader.manifest.capture.signals:
        raise UserError(f"{reader.url}: opened without the signal {signal}; name it in open_cache's signals")
    raise UserError(
        f"{reader.url}: the cache has no {signal} signal; it has {', '.join(reader.manifest.capture.signals)}"
    )


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))


def _key(reader: CacheReader, first: np.ndarray, position: int) -> str:
    shard = int(np.searchsorted(first, position, "right")) - 1
    return reader.index(shard).keys[position - int(first[shard])]


def _softened(logprobs: np.ndarray, log_partition: np.ndarray, temperature: float, manifest: Manifest) -> np.ndarray:
    """exp(log p / T - A_T), float32 [..., K]. Raises UserError."""
    stored = manifest.capture.logits.temperatures
    if temperature not in stored:
        raise UserError(
            f"temperature {temperature:g} is not stored; the cache has {', '.join(f'{t:g}' for t in stored)}"
        )
    column = stored.index(temperature)
    return np.exp(logprobs / np.float32(temperature) - log_partition[..., [column]])


def _by_token(rows: RowBatch, reader: CacheReader) -> dict[str, np.ndarray]:
    """Arrays of a batch with an entry for every token, [R, L, …]."""
    names = ["input_ids", "position_ids", "attention_mask", "loss_mask"]
    if "logits" in reader.signals:
        names += ["ids", "logprobs", "next_logprob", "log_partition"]
    return {name: getattr(rows, name) for name in names}


def _by_stored_row(rows: RowBatch, manifest: Manifest) -> Iterator[tuple[str, Any, dict[str, np.ndarray]]]:
    """For each other signal that was read: its name, its batch record (indices), and its arrays [N, …]."""
    for name, batch in rows.side.items():
        arrays = SIDE_SIGNALS[name].arrays(batch, manifest.capture.side_settings[name])
        yield name, batch, {f"{name}_{part}" if part else name: array for part, array in arrays.items()}


def _tensors(arrays: dict[str, np.ndarray]) -> "dict[str, torch.Tensor]":
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: tensor.long() if tensor.dtype == torch.int32 else tensor for name, tensor in tensors.items()}
