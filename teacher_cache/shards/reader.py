"""Random access to a cache, local or in an object store. Every payload is verified before it is decoded: its checksum
detects accidents, its sha256, bound by the manifest, detects tampering.

A shard's index is read on first use, and the most recently used ones are kept: opening a cache of a hundred thousand
shards reads only its manifest and shard table. Samples of a batch are decoded by a few threads; decompression and the
compiled loops release the GIL.
"""

import itertools
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from schemas.digests import has_digest
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest, ShardEntry, ShardIndex, Signal
from teacher_cache.ahead import map_ahead
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.codec.samples import Columns
from teacher_cache.codec.sections import NO_FRAME
from teacher_cache.codec.tokens import decode_tokens, training_frame
from teacher_cache.process import paused_garbage_collection
from teacher_cache.records import LogitsSample, RowBatch, TokenSample
from teacher_cache.shards.batch import PADDING, Place, allocate_rows, entries_of
from teacher_cache.shards.filling import NO_LAYOUT, FillError, fill, share_out
from teacher_cache.shards.marks import check_index, check_sizes, mark_name, read_table, tar_name, up_to_date_manifest
from teacher_cache.shards.ranges import FileRanges
from teacher_cache.shards.shard_table import ShardTable
from teacher_cache.shards.storage import MAX_JSON_BYTES, Storage
from teacher_cache.shards.tar import payload_problem
from teacher_cache.signals.attention.record import AttentionSample
from teacher_cache.signals.draws.record import DrawsSample
from teacher_cache.signals.encoders import side_codecs
from teacher_cache.signals.hidden.record import HiddenSample
from teacher_cache.signals.logits.codec import LogitsCodec
from teacher_cache.signals.side_signal import SideCodec
from teacher_cache.signals.side_table import SIDE_SIGNALS

if TYPE_CHECKING:
    from teacher_cache.output_head import OutputHead

DECODE_THREADS = min(4, os.cpu_count() or 1)
DECODE_AHEAD = DECODE_THREADS + 1  # decoded batches to hold ready, at most
INDEX_THREADS = 16  # concurrent requests for indexes
NO_FRAMES = (NO_FRAME, NO_FRAME)  # frames of padding
MAX_INDEXED_SAMPLES = 1 << 19  # samples in the indexes kept in memory, 400 bytes each
Decoded = TypeVar("Decoded")
Codec = TypeVar("Codec")
Read = Callable[[int, int], bytes]  # read from one file: offset, size


class Located(NamedTuple):
    """Location of a sample: its shard's index and its number in the shard."""

    shard: ShardIndex
    row: int


class CacheReader:
    """Committed samples of a cache by position: shard by shard, in the order of each shard's index.

    A snapshot of the cache at opening, also in processes that it is pickled to or that are forked.
    """

    def __init__(
        self,
        url: str,
        signals: tuple[Signal, ...] = ("tokens", "logits"),
        manifest: Manifest | None = None,
        copies: tuple[str, int] | None = None,
        bound: bool = False,
    ) -> None:
        """Open a cache, or the part that ``manifest`` lists; only files of ``signals`` are ever accessed.

        ``copies``: folder for local copies of a remote cache's shards, and their maximum size in bytes.
        ``bound``: verify everything by cryptographic hashes from the manifest, also shards without digests (format
        1.0): the first use of such a tar reads all of it.

        Raises:
            UserError: there is no cache at ``url``, it does not have these signals, or its store cannot be read.
            CorruptCacheError: the manifest is invalid, or a file that it lists is missing or has the wrong size. Files
                of caches with a shard table are checked when they are read.
        """
        self.url = url
        self.signals = signals
        self._copies = copies
        self.bound = bound
        self._connect()
        self.manifest: Manifest = manifest or up_to_date_manifest(self._storage)
        self._open()
        if self.manifest.shard_table is None and self._storage.can_list:
            sizes = self._storage.sizes()
            for entry in self.manifest.shards:
                check_sizes(self._storage, entry, self.signals, sizes)

    def _connect(self) -> None:
        """Create the state that belongs to one process."""
        self._process = os.getpid()
        self._storage = Storage(self.url)
        self._ranges = FileRanges(self._storage, self._copies)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def _reconnect_after_fork(self) -> None:
        if self._process != os.getpid():  # threads and connections do not survive a fork
            self._connect()

    def _open(self) -> None:
        for signal in self.signals:
            if signal not in ("tokens", *self.manifest.capture.signals):
                raise self._not_stored(signal)
        self._shards = ShardTable(self.manifest, self._storage)
        self.shard_sizes = self._shards.samples
        self._first: list[int] = np.concatenate([[0], np.cumsum(self.shard_sizes)]).tolist()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._indexed_samples = 0
        self._tables: dict[str, CodeTable] = {}
        self._logits: dict[str, LogitsCodec] = {}
        self._side = side_codecs(self.manifest, None)
        self._side_with_ids: dict[str, dict[str, SideCodec[Any]]] = {}

    def __len__(self) -> int:
        return self._first[-1]

    @property
    def keeps_copies(self) -> bool:
        """Whether shards are copied to a local folder."""
        return self._ranges.keeps_copies

    @cached_property
    def keys(self) -> list[str]:
        """Keys of all samples, in order; reads every index."""
        return [key for shard in range(len(self._shards)) for key in self.index(shard).keys]

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Number of tokens of each sample, int32; reads every index."""
        return np.array([n for shard in range(len(self._shards)) for n in self.index(shard).num_tokens], np.int32)

    def load_indexes(self, shards: Iterable[int]) -> None:
        """Read the indexes of these shards concurrently, if each takes a request to a store."""
        if self._storage.is_local:
            return
        with self._lock:
            missing = [shard for shard in shards if shard not in self._indexes]
        if len(missing) > 1:
            with ThreadPoolExecutor(INDEX_THREADS, "index") as pool:
                list(pool.map(self.index, dict.fromkeys(missing)))

    def index(self, shard: int) -> ShardIndex:
        """Index of a shard, by its number in the cache. Raises CorruptCacheError."""
        self._reconnect_after_fork()
        with self._lock:
            if shard in self._indexes:
                self._indexes.move_to_end(shard)
                return self._indexes[shard]
        entry = self._shards.entry(shard)
        try:
            index = self._read_index(entry)
        except CorruptCacheError:
            if not self._ranges.renew(mark_name(entry.name), entry.index):
                raise
            index = self._read_index(entry)
        with self._lock:
            if shard not in self._indexes:
                self._indexes[shard] = index
                self._indexed_samples += len(index.keys)
            while self._indexed_samples > MAX_INDEXED_SAMPLES and len(self._indexes) > 1:
                _, oldest = self._indexes.popitem(last=False)
                self._indexed_samples -= len(oldest.keys)
        return index

    def shard_digest(self, shard: int) -> str:
        """The sha256 of a shard's index, which binds everything in the shard; hex."""
        return self._shards.entry(shard).index.sha256

    def _read_index(self, entry: ShardEntry) -> ShardIndex:
        size = min(entry.index.bytes, MAX_JSON_BYTES)
        data = self._ranges.read(mark_name(entry.name), entry.index, 0, size)
        return check_index(data, entry, self.manifest, self.signals, self._storage)

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("url", "signals", "manifest", "_copies", "bound")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._connect()
        self._open()

    def close(self) -> None:
        """Close files and threads; reading again reopens them."""
        self._reconnect_after_fork()
        self._ranges.close()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def fetch_ahead(self, positions: np.ndarray) -> None:
        """Start copying the shards of these samples in this order, if local copies of a remote cache are kept."""
        self._reconnect_after_fork()
        if not self.keeps_copies:
            return
        shards = np.searchsorted(np.cumsum(self.shard_sizes), positions, side="right")
        numbers, first_use = np.unique(shards, return_index=True)
        files = []
        for number in numbers[np.argsort(first_use)].tolist():
            entry = self._shards.entry(number)
            files.append((mark_name(entry.name), entry.index))
            files += [
                (tar_name(entry.name, signal), entry.files[signal]) for signal in self.signals if signal in entry.files
            ]
        self._ranges.fetch_ahead(files)

    def payload(self, position: int, signal: Signal) -> bytes:
        """Verified payload of one sample. Raises CorruptCacheError naming file and sample."""
        shard, row = self._at(position)
        member, read = shard.signals[signal], self._reader(shard, signal)
        return self._verified(read(member.offsets[row], member.sizes[row]), shard, row, signal, read)

    def _at(self, position: int) -> Located:
        self._reconnect_after_fork()
        return self._locate(position)

    def read_tokens(self, position: int) -> TokenSample:
        """Tokens of one sample."""
        at, vocab_size = self._at(position), self.manifest.teacher.vocab_size
        sample = self._decoded_one(at, "tokens", lambda payload, n: decode_tokens(payload, n, vocab_size))
        if sample.key != at.shard.keys[at.row]:
            raise CorruptCacheError(f"{self._where(*at, 'tokens')}: the payload belongs to sample {sample.key}")
        return sample

    def read_logits(self, position: int) -> LogitsSample:
        """Logits of one sample."""
        return self._decoded_one(self._at(position), "logits", self._logits_codec(position).decode)

    def read(self, position: int, signal: Signal) -> Any:
        """Record of a side signal of one sample. Raises UserError if the cache does not store the signal."""
        return self._decoded_one(self._at(position), signal, self._side_codec(position, signal).decode)

    def read_draws(self, position: int) -> DrawsSample:
        """Draws of one sample; see ``read``."""
        return self.read(position, "draws")

    def read_final(self, position: int) -> HiddenSample:
        """Final hidden states of one sample, as a record of one layer; see ``read``."""
        return self.read(position, "final")

    def read_hidden(self, position: int) -> HiddenSample:
        """Hidden states of one sample; see ``read``."""
        return self.read(position, "hidden")

    def read_attention(self, position: int) -> AttentionSample:
        """Attention rows of one sample; see ``read``."""
        return self.read(position, "attention")

    def read_head(self) -> "OutputHead":
        """Teacher's output head. Raises UserError if the cache does not store it."""
        if self.manifest.capture.final is None:
            raise self._not_stored("final")
        from teacher_cache.shards.head_file import read_head  # loads torch

        return read_head(self._storage, self.manifest)

    def _not_stored(self, signal: str) -> UserError:
        return UserError(f"{self.url}: the cache has no {signal} signal; cache the teacher with capture.{signal} set")

    def read_rows(
        self, rows: Sequence[Sequence[int]], length: int | None = None, threads: int | None = None
    ) -> RowBatch:
        """Decode samples into batch arrays; ``rows[r]`` lists the samples packed into row r.

        Rows are padded to the longest, or to ``length`` tokens. The batch holds the signals of this reader. ``threads``
        (default: DECODE_THREADS) share the work. Raises ValueError if a row is longer than ``length``.
        """
        with paused_garbage_collection():  # a few objects per sample, without cycles
            return self._read_rows(rows, length, DECODE_THREADS if threads is None else threads)

    def _read_rows(self, rows: Sequence[Sequence[int]], length: int | None, threads: int) -> RowBatch:
        at = self._locate_all([position for row in rows for position in row])
        lengths = [[at[position].shard.num_tokens[at[position].row] for position in row] for row in rows]
        filled = [sum(row) for row in lengths]
        n_tokens = max(filled, default=0) if length is None else length
        if max(filled, default=0) > n_tokens:
            raise ValueError(f"a row of {max(filled)} tokens does not fit into {n_tokens}")
        self._reconnect_after_fork()
        capture = self.manifest.capture.logits
        k, n_temperatures = (capture.k, len(capture.temperatures)) if "logits" in self.signals else (0, 0)
        batch = allocate_rows(len(rows), n_tokens, k, n_temperatures)
        places = _places(rows, lengths)
        padding = [Place(PADDING, r, slice(stop, n_tokens)) for r, stop in enumerate(filled) if stop < n_tokens]
        self._fill(batch, places, padding, at, threads)
        side = {name: self._joined(name, places, at) for name in self.signals if name in SIDE_SIGNALS}
        return replace(batch, side=side)

    def _joined(self, signal: Signal, places: list[Place], at: dict[int, Located]) -> Any:
        """Batch of a side signal; samples of shards with the same code table are decoded together."""
        kind, samples = SIDE_SIGNALS[signal], []
        for _, group in itertools.groupby(places, lambda place: at[place.sample].shard.table):
            found = [place.sample for place in group]
            decode = self._side_codec(found[0], signal).decode
            samples += self._decoded([at[sample] for sample in found], signal, decode)
        if not places:
            places = [Place(PADDING, 0, slice(0, 0))]
            samples = [kind.empty(self.manifest.capture.side_settings[signal], self.manifest)]
        return kind.join(samples, entries_of(places, samples))

    def read_batches(self, batches: Iterable[Sequence[Sequence[int]]]) -> Iterator[RowBatch]:
        """``read_rows`` of each batch, in order. Threads decode ahead, one batch each, which needs less waiting."""
        return map_ahead(lambda rows: self.read_rows(rows, threads=1), batches, DECODE_THREADS, DECODE_AHEAD)

    def _fill(
        self, batch: RowBatch, places: list[Place], padding: list[Place], at: dict[int, Located], threads: int
    ) -> None:
        """Decode tokens and logits; samples of shards with the same code table are decoded together."""
        columns = Columns.of(batch)
        of_table: dict[str, list[Place]] = {}
        for place in places:
            of_table.setdefault(at[place.sample].shard.table, []).append(place)
        of_table.setdefault(next(iter(of_table), ""), []).extend(padding)
        for group in of_table.values():
            with_logits = "logits" in self.signals and group[0].sample != PADDING
            codec = self._logits_codec(group[0].sample) if with_logits else None
            own, *others = share_out(group, threads)
            futures = [self._decoders().submit(self._fill_share, columns, codec, share, at) for share in others]
            try:
                self._fill_share(columns, codec, own, at)
            finally:
                wait(futures)
            for future in futures:
                future.result()

    def _decoders(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(DECODE_THREADS, "decode")
        return self._pool

    def _fill_share(
        self, columns: Columns, codec: LogitsCodec | None, places: list[Place], at: dict[int, Located]
    ) -> None:
        found = [at[place.sample] for place in places if place.sample != PADDING]
        tokens = self._decoded(found, "tokens", training_frame)
        logits = repeat(NO_FRAME) if codec is None else self._decoded(found, "logits", codec.frame)
        pairs = zip(tokens, logits, strict=False)
        frames = [NO_FRAMES if place.sample == PADDING else next(pairs) for place in places]
        layout = NO_LAYOUT if codec is None else codec.layout
        try:
            fill(columns, places, frames, layout, self.manifest.teacher.vocab_size)
        except FillError as error:
            raise CorruptCacheError(f"{self.where(error.sample, error.signal)}: {error}") from None

    def _decoded(
        self, found: Sequence[Located], signal: Signal, decode: Callable[[bytes, int], Decoded]
    ) -> list[Decoded]:
        """Apply ``decode`` to the verified payload and number of tokens of each sample."""
        decoded: list[Decoded] = []
        for (shard, row), payload in zip(found, self._payloads(found, signal), strict=True):
            try:
                decoded.append(decode(payload, shard.num_tokens[row]))
            except CorruptCacheError as error:
                raise CorruptCacheError(f"{self._where(shard, row, signal)}: {error}") from None
        return decoded

    def _payloads(self, found: Sequence[Located], signal: Signal) -> list[bytes]:
        """Payloads of these samples, verified by digest or, without one, by checksum.

        For short samples Python dominates, so whatever is common to a shard's samples is looked up once.
        """
        payloads: list[bytes] = []
        members: dict[str, tuple[Read, list[int], list[int], bytes | None]] = {}
        for shard, row in found:
            member = members.get(shard.name)
            if member is None:
                index = shard.signals[signal]
                member = members[shard.name] = self._reader(shard, signal), index.offsets, index.sizes, index.digests
            read, offsets, sizes, digests = member
            payload = read(offsets[row], sizes[row])
            if digests is None or not has_digest(payload, digests, row):
                payload = self._verified(payload, shard, row, signal, read)
            payloads.append(payload)
        return payloads

    def _decoded_one(self, at: Located, signal: Signal, decode: Callable[[bytes, int], Decoded]) -> Decoded:
        return self._decoded([at], signal, decode)[0]

    def _reader(self, shard: ShardIndex, signal: Signal) -> Read:
        member = shard.signals[signal]
        return self._ranges.opened(tar_name(shard.name, signal), member.file, self.bound and member.digests is None)

    def _verified(self, payload: bytes, shard: ShardIndex, row: int, signal: Signal, read: Read) -> bytes:
        """Verify a payload; reread it if a stale local copy may be the cause. Raises CorruptCacheError."""
        member = shard.signals[signal]
        problem = payload_problem(payload, member, row)
        if problem and self._ranges.renew(tar_name(shard.name, signal), member.file):
            payload = read(member.offsets[row], member.sizes[row])
            problem = payload_problem(payload, member, row)
        if problem:
            raise CorruptCacheError(f"{self._where(shard, row, signal)}: {problem}")
        return payload

    def _locate(self, position: int) -> Located:
        if not 0 <= position < len(self):
            raise IndexError(f"sample {position} of {len(self)}")
        shard = bisect_right(self._first, position) - 1
        return Located(self.index(shard), position - self._first[shard])

    def _locate_all(self, positions: list[int]) -> dict[int, Located]:
        """Locations of these samples, by position; their indexes are read concurrently."""
        for position in (min(positions, default=0), max(positions, default=0)):
            if positions and not 0 <= position < len(self):
                raise IndexError(f"sample {position} of {len(self)}")
        shards = (np.searchsorted(self._first, positions, "right") - 1).tolist()
        self.load_indexes(shards)
        indexes = {shard: self.index(shard) for shard in set(shards)}
        return {
            position: Located(indexes[shard], position - self._first[shard])
            for position, shard in zip(positions, shards, strict=True)
        }

    def key(self, position: int) -> str:
        """Key of a sample; reads the index of its shard."""
        shard, row = self._locate(position)
        return shard.keys[row]

    def where(self, position: int, signal: Signal) -> str:
        """Tar and key of a sample, for messages."""
        return self._where(*self._locate(position), signal)

    def _where(self, shard: ShardIndex, row: int, signal: Signal) -> str:
        return f"{self._storage.where(tar_name(shard.name, signal))}: sample {shard.keys[row]}"

    def _logits_codec(self, position: int) -> LogitsCodec:
        capture, codec = self.manifest.capture.logits, self.manifest.codec
        return self._with_table(position, self._logits, lambda table: LogitsCodec(capture, codec, table))

    def _side_codec(self, position: int, signal: Signal) -> SideCodec[Any]:
        """Codec of a side signal, with the code table of the sample's shard."""
        if signal in self._side:
            return self._side[signal]
        if signal not in self.manifest.capture.side_settings:
            raise self._not_stored(signal)
        with_ids = self._with_table(position, self._side_with_ids, lambda table: side_codecs(self.manifest, table))
        return with_ids[signal]

    def _with_table(self, position: int, made: dict[str, Codec], make: Callable[[CodeTable], Codec]) -> Codec:
        """Codec for the code table of the sample's shard; created once per table."""
        digest = self._locate(position)[0].table
        with self._lock:
            if digest not in made:
                if digest not in self._tables:
                    table = read_table(self._storage, digest, self.manifest.teacher.vocab_size)
                    self._tables[digest] = CodeTable(table)
                made[digest] = make(self._tables[digest])
            return made[digest]


def _places(rows: Sequence[Sequence[int]], lengths: Sequence[Sequence[int]]) -> list[Place]:
    places: list[Place] = []
    for r, (row, row_lengths) in enumerate(zip(rows, lengths, strict=True)):
        spans = itertools.pairwise(itertools.accumulate(row_lengths, initial=0))
        places += [Place(position, r, slice(*span)) for position, span in zip(row, spans, strict=True)]
    return places
