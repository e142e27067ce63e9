"""Random access to a cache, local or in an object store. Every payload's checksum is verified before it is decoded.

Samples of a batch are decoded on a few threads: decompression and the array passes release Python's lock.
"""

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from typing import TypeVar

import numpy as np

from schemas.errors import CorruptCacheError
from schemas.manifest import Manifest, ShardEntry, ShardIndex, Signal
from teacher_cache.codec.logits import LogitsDecoder, LogitsTarget
from teacher_cache.codec.permutation import decode_table, table_path
from teacher_cache.codec.tokens import decode_tokens, decode_training_columns
from teacher_cache.records import LogitsSample, RowBatch, TokenSample
from teacher_cache.shards.marks import read_manifest, read_mark, tar_name
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.tar import checksum

DECODE_THREADS = min(4, os.cpu_count() or 1)
MAX_OPEN_FILES = 128
Decoded = TypeVar("Decoded")


class CacheReader:
    """The committed samples of a cache, by position: shard by shard, in the order of each shard's index."""

    def __init__(self, url: str, signals: tuple[Signal, ...] = ("tokens", "logits")) -> None:
        """Open a cache; only files of ``signals`` are ever touched.

        Raises:
            UserError: there is no cache at ``url``.
            CorruptCacheError: a file is missing, of the wrong size, or not valid.
        """
        self.url = url
        self.signals = signals
        self.manifest: Manifest
        self._open()

    def _open(self) -> None:
        self._storage = Storage(self.url)
        self.manifest = read_manifest(self._storage)
        self._shards: list[ShardIndex] = [self._read_index(entry) for entry in self.manifest.shards]
        self.keys: list[str] = [key for shard in self._shards for key in shard.keys]
        self.num_tokens = np.array([n for shard in self._shards for n in shard.num_tokens], np.int32)
        self._first = np.array(list(itertools.accumulate((len(s.keys) for s in self._shards), initial=0)))
        self._decoders: dict[str, LogitsDecoder] = {}
        self._files: dict[str, FileIO] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def _read_index(self, entry: ShardEntry) -> ShardIndex:
        index = read_mark(self._storage, entry.name, entry.index)
        for signal in self.signals:
            name = tar_name(entry.name, signal)
            if signal not in index.signals:
                raise CorruptCacheError(f"{self._storage.where(name)}: the shard has no {signal} signal")
            member = index.signals[signal]
            size = self._storage.size(name)
            if size != member.file.bytes:
                raise CorruptCacheError(
                    f"{self._storage.where(name)}: {size} bytes, the index says {member.file.bytes}"
                )
            for key, offset, length in zip(index.keys, member.offsets, member.sizes, strict=True):
                if offset + length > size:
                    raise CorruptCacheError(f"{self._storage.where(name)}: sample {key} ends beyond the file")
        return index

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, object]:
        return {"url": self.url, "signals": self.signals}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def close(self) -> None:
        """Close files and threads; reading again reopens them."""
        with self._lock:
            self._files.clear()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def payload(self, position: int, signal: Signal) -> bytes:
        """The verified bytes of one sample's member. Raises CorruptCacheError naming the file and the sample."""
        shard, row = self._locate(position)
        member = shard.signals[signal]
        name = tar_name(shard.name, signal)
        data = self._read_range(name, member.offsets[row], member.sizes[row])
        if len(data) != member.sizes[row] or checksum(data) != member.checksums[row]:
            raise CorruptCacheError(
                f"{self._storage.where(name)}: sample {shard.keys[row]}: xxh3 is {checksum(data)}, the index says "
                f"{member.checksums[row]}; fetch the file again from where it came"
            )
        return data

    def read_tokens(self, position: int) -> TokenSample:
        """The tokens signal of one sample."""
        payload = self.payload(position, "tokens")
        num_tokens = int(self.num_tokens[position])
        sample = self._named(
            position, "tokens", lambda: decode_tokens(payload, num_tokens, self.manifest.teacher.vocab_size)
        )
        if sample.key != self.keys[position]:
            raise CorruptCacheError(f"{self._where(position, 'tokens')}: the payload belongs to sample {sample.key}")
        return sample

    def read_logits(self, position: int) -> LogitsSample:
        """The logits signal of one sample."""
        payload = self.payload(position, "logits")
        decoder = self._decoder(position)
        return self._named(position, "logits", lambda: decoder.decode(payload, int(self.num_tokens[position])))

    def read_rows(self, rows: Sequence[Sequence[int]], length: int | None = None) -> RowBatch:
        """Decode samples into batch arrays; ``rows[r]`` lists the samples that are laid one after the other in row r.

        Rows are padded to the longest, or to ``length`` tokens. Raises ValueError when a row does not fit.
        """
        used = [int(self.num_tokens[list(row)].sum()) for row in rows]
        n_rows, n_tokens = len(rows), max(used) if length is None else length
        if max(used) > n_tokens:
            raise ValueError(f"a row of {max(used)} tokens does not fit into {n_tokens}")
        k, n_temperatures = self.manifest.capture.logits.k, len(self.manifest.capture.logits.temperatures)
        batch = RowBatch(
            input_ids=np.zeros((n_rows, n_tokens), np.int64),
            position_ids=np.zeros((n_rows, n_tokens), np.int64),
            attention_mask=np.zeros((n_rows, n_tokens), bool),
            loss_mask=np.zeros((n_rows, n_tokens), bool),
            ids=np.empty((n_rows, n_tokens, k), np.int32),
            logprobs=np.empty((n_rows, n_tokens, k), np.float32),
            next_logprob=np.empty((n_rows, n_tokens), np.float32),
            log_partition=np.empty((n_rows, n_tokens, n_temperatures), np.float32),
        )
        places = []
        for r, row in enumerate(rows):
            start = 0
            for position in row:
                stop = start + int(self.num_tokens[position])
                places.append((position, r, slice(start, stop)))
                start = stop
            batch.ids[r, start:] = 0
            batch.logprobs[r, start:] = -np.inf
            batch.next_logprob[r, start:] = np.nan
            batch.log_partition[r, start:] = 0
        if len(places) == 1 or DECODE_THREADS == 1:
            for place in places:
                self._fill(batch, *place)
        else:
            self._pool = self._pool or ThreadPoolExecutor(DECODE_THREADS, "decode")
            list(self._pool.map(lambda place: self._fill(batch, *place), places))
        return batch

    def _fill(self, batch: RowBatch, position: int, r: int, span: slice) -> None:
        num_tokens = span.stop - span.start
        vocab_size = self.manifest.teacher.vocab_size
        payload = self.payload(position, "tokens")
        input_ids, loss_mask = self._named(
            position, "tokens", lambda: decode_training_columns(payload, num_tokens, vocab_size)
        )
        batch.input_ids[r, span] = input_ids
        batch.loss_mask[r, span] = loss_mask
        batch.position_ids[r, span] = np.arange(num_tokens)
        batch.attention_mask[r, span] = True
        target = LogitsTarget(
            batch.ids[r, span], batch.logprobs[r, span], batch.next_logprob[r, span], batch.log_partition[r, span]
        )
        logits = self.payload(position, "logits")
        decoder = self._decoder(position)
        self._named(position, "logits", lambda: decoder.decode_into(logits, num_tokens, target))

    def _locate(self, position: int) -> tuple[ShardIndex, int]:
        if not 0 <= position < len(self.keys):
            raise IndexError(f"sample {position} of {len(self.keys)}")
        shard = int(np.searchsorted(self._first, position, side="right")) - 1
        return self._shards[shard], position - int(self._first[shard])

    def _where(self, position: int, signal: Signal) -> str:
        shard, row = self._locate(position)
        return f"{self._storage.where(tar_name(shard.name, signal))}: sample {shard.keys[row]}"

    def _named(self, position: int, signal: Signal, decode: Callable[[], Decoded]) -> Decoded:
        try:
            return decode()
        except CorruptCacheError as error:
            raise CorruptCacheError(f"{self._where(position, signal)}: {error}") from None

    def _decoder(self, position: int) -> LogitsDecoder:
        digest = self._locate(position)[0].table
        with self._lock:
            if digest not in self._decoders:
                vocab_size = self.manifest.teacher.vocab_size
                name = table_path(digest)
                data = self._storage.read(name, max_bytes=8 * vocab_size + 1024)
                table = decode_table(data, vocab_size, digest, self._storage.where(name))
                self._decoders[digest] = LogitsDecoder(self.manifest.capture.logits, self.manifest.codec, table)
            return self._decoders[digest]

    def _read_range(self, name: str, offset: int, size: int) -> bytes:
        if not self._storage.is_local:
            return self._storage.read_range(name, offset, size)
        file = self._file(name)  # held here, so that another thread's eviction does not close it
        return os.pread(file.fileno(), size, offset)

    def _file(self, name: str) -> FileIO:
        with self._lock:
            if name not in self._files:
                if len(self._files) >= MAX_OPEN_FILES:
                    del self._files[next(iter(self._files))]
                try:
                    self._files[name] = FileIO(self._storage.local_path(name))
                except OSError as error:
                    raise CorruptCacheError(f"{self._storage.where(name)}: {error.strerror}") from None
            return self._files[name]
