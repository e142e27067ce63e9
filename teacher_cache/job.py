"""A caching run, from top to bottom: plan → score → encode → write → commit, unit by unit.

A unit is scored as a whole and becomes one shard; its commit mark is written last. Whatever instant the process dies
at, the next run finds only whole shards and garbage that it removes.
"""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.manifest import Manifest, MemberIndex, ShardIndex, Signal, Unit
from teacher_cache.codec.encoders import Encoders
from teacher_cache.codec.permutation import CodeTable, build_code_table, encode_table, table_digest, table_path
from teacher_cache.engines import Engine, open_engine
from teacher_cache.head import check_rebuilt
from teacher_cache.plan import load_or_make_plan, read_unit
from teacher_cache.process import peak_memory_bytes
from teacher_cache.progress import Progress
from teacher_cache.records import Captured, TokenSample
from teacher_cache.shards.head import read_head
from teacher_cache.shards.marks import assemble, committed, read_mark, read_table, remove_garbage, write_mark
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.shards.writer import ShardWriter
from teacher_cache.signals.entropy import bucket_entropy
from teacher_cache.signals.positions import to_request

logger = logging.getLogger(__name__)

BATCHES_PER_CALL = 8  # forward passes an engine is given work for at a time: bounds the signals held in memory


@dataclass(frozen=True)
class Worker:
    """This process' share of the units: those whose number is ``rank`` modulo ``world``."""

    rank: int = 0
    world: int = 1

    @property
    def owner(self) -> str:
        """Prefix of this worker's temporary file names."""
        return f"w{self.rank}-"


@dataclass(frozen=True)
class Summary:
    """What a run did (this run's share) and where the cache stands (all workers')."""

    units_scored: int
    units_skipped: int  # committed before
    samples: int  # of this run, as are the next lines
    tokens: int
    seconds: float  # scoring, encoding and writing; loading the engine is not in it
    engine_load_seconds: float
    tokens_per_second: float
    mean_entropy: float | None  # nats, of the stored entries and one bucket for the rest: a lower bound
    peak_memory_bytes: int
    cache_samples: int  # of the cache, as are the next lines
    cache_tokens: int
    bytes_per_token: dict[str, float]  # by signal, and the index
    complete: bool
    manifest_digest: str
    stopped_by: str | None  # name of the signal that ended the run before its last unit


def run(config: CacheConfig, worker: Worker | None = None) -> Summary:
    """Cache what the configuration asks for; units that are committed already are skipped.

    SIGINT and SIGTERM let the unit in hand finish; a second one ends the process at once. Raises UserError.
    """
    worker = worker or Worker()
    storage = Storage(config.output.path)
    plan = load_or_make_plan(config, storage)
    remove_garbage(storage, plan, worker.owner)
    done = set(committed(storage, plan))
    mine = plan.units[worker.rank :: worker.world]
    pending = [unit for unit in mine if unit.name not in done]
    tally = _Tally()
    stop = _StopRequest()
    if pending:
        started = time.perf_counter()
        with open_engine(config) as engine, stop.listening():
            tally.engine_load_seconds = time.perf_counter() - started
            logger.info("teacher loaded in %.1f s", tally.engine_load_seconds)
            tokens_per_call = BATCHES_PER_CALL * config.engine.max_batch_tokens
            _score_units(engine, plan, pending, storage, worker, tally, stop, tokens_per_call)
    plan = _write_manifest(storage, plan, worker)
    return _summarise(plan, tally, skipped=len(mine) - len(pending), stopped_by=stop.signal_name)


def _score_units(
    engine: Engine,
    plan: Manifest,
    pending: list[Unit],
    storage: Storage,
    worker: Worker,
    tally: "_Tally",
    stop: "_StopRequest",
    tokens_per_call: int,
) -> None:
    """Score, encode and write units. Signals without token ids are written as they come, call by call."""
    encoders = Encoders(plan)
    unchecked_head = None if plan.capture.final is None else read_head(storage, plan)
    table = ""
    with Progress(total_tokens=sum(unit.tokens for unit in pending)) as progress:
        for unit in pending:
            if stop.signal_name:
                return
            started = time.perf_counter()
            sequences, tokens_index = read_unit(storage, unit, plan.teacher.vocab_size)
            with ShardWriter(storage, unit, plan.capture.signals, worker.owner) as shard:
                kept = []  # what waits for the code table
                for part in _parts(sequences, tokens_per_call):
                    requests = [to_request(sample, plan.capture) for sample in part]
                    for sample, captured in zip(part, engine.score(requests), strict=True):
                        if unchecked_head is not None:
                            check_rebuilt(captured, unchecked_head, plan)
                            unchecked_head = None
                        kept.append(Captured(captured.logits, draws=captured.draws))
                        for signal, payload in encoders.encode_others(captured):
                            shard.add(signal, sample.key, payload)
                if not table:
                    table_ids, table = _code_table(storage, plan, kept, worker)
                    encoders.use_table(CodeTable(table_ids))
                for sample, captured in zip(sequences, kept, strict=True):
                    for signal, payload in encoders.encode_ids(captured):
                        shard.add(signal, sample.key, payload)
            _commit(storage, unit, sequences, {"tokens": tokens_index, **shard.indexes()}, table, worker)
            entropy = sum(float(bucket_entropy(captured.logits).sum()) for captured in kept)
            tally.add(unit, entropy, time.perf_counter() - started)
            progress.advance(unit.tokens, tally.tokens_per_second, tally.mean_entropy)


def _parts(sequences: list[TokenSample], tokens_per_call: int) -> Iterator[list[TokenSample]]:
    """Consecutive sequences of at least ``tokens_per_call`` tokens together, but for the last part."""
    part: list[TokenSample] = []
    tokens = 0
    for sample in sequences:
        part.append(sample)
        tokens += len(sample.input_ids)
        if tokens >= tokens_per_call:
            yield part
            part, tokens = [], 0
    if part:
        yield part


def _commit(
    storage: Storage,
    unit: Unit,
    sequences: list[TokenSample],
    signals: dict[Signal, MemberIndex],
    table: str,
    worker: Worker,
) -> None:
    index = ShardIndex(
        name=unit.name,
        keys=[sample.key for sample in sequences],
        num_tokens=[len(sample.input_ids) for sample in sequences],
        table=table,
        signals=signals,
    )
    write_mark(storage, index, worker.owner)


def _code_table(storage: Storage, plan: Manifest, scored: list[Captured], worker: Worker) -> tuple[np.ndarray, str]:
    """The code table in use in this cache, or one made from the first scored unit; and its digest."""
    vocab_size = plan.teacher.vocab_size
    for shard in committed(storage, plan):
        digest = read_mark(storage, shard).table
        return read_table(storage, digest, vocab_size), digest
    counts = np.zeros(vocab_size, np.int64)
    for captured in scored:
        logits, draws = captured.logits, captured.draws
        counts += np.bincount(logits.ids[np.isfinite(logits.logprobs)], minlength=vocab_size)
        if draws is not None:
            counts += np.bincount(draws.ids.reshape(-1), minlength=vocab_size)
    table = build_code_table(counts)
    digest = table_digest(table)
    storage.write(table_path(digest), encode_table(table), worker.owner)
    return table, digest


def _write_manifest(storage: Storage, plan: Manifest, worker: Worker) -> Manifest:
    manifest = assemble(storage, plan)
    storage.write(MANIFEST, manifest.to_json().encode(), worker.owner)
    if manifest.complete:
        remove_garbage(storage, manifest)
    return manifest


class _Tally:
    """Running sums of this run."""

    def __init__(self) -> None:
        self.units = self.samples = self.tokens = 0
        self.seconds = self.entropy = self.engine_load_seconds = 0.0

    def add(self, unit: Unit, entropy: float, seconds: float) -> None:
        self.units += 1
        self.samples += unit.samples
        self.tokens += unit.tokens
        self.entropy += entropy
        self.seconds += seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def mean_entropy(self) -> float | None:
        return self.entropy / self.tokens if self.tokens else None


class _StopRequest:
    """Remembers the first SIGINT or SIGTERM; the second one takes its default course."""

    signal_name: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, _frame: object) -> None:
        self.signal_name = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
        logger.warning("%s: finishing the unit in hand; send it again to end at once", self.signal_name)


def _summarise(manifest: Manifest, tally: _Tally, skipped: int, stopped_by: str | None) -> Summary:
    tokens = max(1, manifest.totals.tokens)
    bytes_per_token: dict[str, float] = {name: size / tokens for name, size in manifest.totals.bytes.items()}
    return Summary(
        units_scored=tally.units,
        units_skipped=skipped,
        samples=tally.samples,
        tokens=tally.tokens,
        seconds=tally.seconds,
        engine_load_seconds=tally.engine_load_seconds,
        tokens_per_second=tally.tokens_per_second,
        mean_entropy=tally.mean_entropy,
        peak_memory_bytes=peak_memory_bytes(),
        cache_samples=manifest.totals.samples,
        cache_tokens=manifest.totals.tokens,
        bytes_per_token=bytes_per_token | {"index": manifest.totals.index_bytes / tokens},
        complete=manifest.complete,
        manifest_digest=manifest.digest(),
        stopped_by=stopped_by,
    )


def parse_worker(text: str) -> Worker:
    """``"0/4"`` as the first of four workers. Raises UserError."""
    rank, slash, world = text.partition("/")
    if not (slash and rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(f"--worker: {text!r}: expected RANK/WORLD with RANK below WORLD, for example 0/4")
    return Worker(int(rank), int(world))


def summary_dict(summary: Summary) -> dict[str, object]:
    """The summary as plain data for JSON."""
    return asdict(summary)
