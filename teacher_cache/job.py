"""A caching run, from top to bottom: plan → score → encode → write → commit, unit by unit.

A unit is scored as a whole and becomes one shard; its commit mark is written last. After a crash at any point, the next
run finds only complete shards, and garbage that it removes.
"""

import logging
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass

from schemas.cache_config import CacheConfig
from schemas.errors import ConflictError, UserError
from schemas.manifest import Manifest, MemberIndex, Unit
from teacher_cache.claims import RUNNING, Claim, Claims, ShareClaims
from teacher_cache.engines import Engine, open_engine
from teacher_cache.plan import load_or_make_plan, numbered_parts, read_unit, wait_for_workers
from teacher_cache.process import peak_memory_bytes
from teacher_cache.progress import Progress
from teacher_cache.queue_claims import QueueClaims
from teacher_cache.records import Captured, Request, TokenSample
from teacher_cache.shards.lease import POLL, Held, part_lease, remove_dead_parts
from teacher_cache.shards.marks import (
    assemble,
    check_committed,
    committed,
    garbage,
    read_manifest,
    remove_garbage,
    write_manifest,
)
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.signals.select_positions import to_request
from teacher_cache.stop_request import StopRequest
from teacher_cache.writing import UnitWriter

logger = logging.getLogger(__name__)

Part = list[tuple[TokenSample, Request]]
BATCHES_PER_CALL = 8  # forward passes per engine call: bounds the signals held in memory


@dataclass(frozen=True)
class Worker:
    """This process's share of the units: those whose index is ``rank`` modulo ``world``.

    ``queue``: whether it comes back to units of its share that another process had, and does what that one left.
    """

    rank: int = 0
    world: int = 1
    queue: bool = False

    @property
    def owner(self) -> str:
        """Prefix of this worker's temporary file names."""
        return f"w{self.rank}-"


@dataclass(frozen=True)
class Summary:
    """Results of this run, and the state of the cache (all workers)."""

    units_scored: int
    units_skipped: int  # committed before
    samples: int  # in this run, like the following fields
    tokens: int
    seconds: float  # scoring, encoding and writing, without loading the engine
    engine_load_seconds: float
    tokens_per_second: float
    engine_idle_share: float | None  # fraction of the time from the first unit to the last
    mean_entropy: float | None  # nats, of the teacher's full distributions at temperature 1; None: unknown
    peak_memory_bytes: int
    cache_samples: int  # in the cache, like the following fields
    cache_tokens: int
    bytes_per_token: dict[str, float]  # of the cache's files, by signal, index, tables and head
    complete: bool
    manifest_digest: str
    stopped_by: str | None  # name of the signal that ended the run before its last unit


def run(config: CacheConfig, worker: Worker | None = None) -> Summary:
    """Run the caching job of ``config``; units already committed are skipped.

    On SIGINT, SIGTERM or SIGHUP the current unit is finished; a second signal ends the process at once. Raises
    UserError.
    """
    worker = worker or Worker()
    storage = Storage(config.output.path)
    plan = load_or_make_plan(config, storage)
    done = set(committed(storage, plan))
    check_committed(storage, _without(plan, {unit.name for unit in plan.units} - done))
    mine = plan.units[worker.rank :: worker.world]
    pending = [unit for unit in mine if unit.name not in done]
    tally = _Tally()
    stop = StopRequest()
    with _claims(worker, storage, pending) as claims:
        if first := claims.next_or_wait(stop):
            started = time.perf_counter()
            with open_engine(config) as engine, stop.listening("the current unit", kill=True):
                tally.engine_load_seconds = time.perf_counter() - started
                logger.info("teacher loaded in %.1f s", tally.engine_load_seconds)
                _score_units(engine, plan, first, claims, storage, worker, tally, stop, config, pending, done)
        manifest = _write_manifest(storage, plan, done)
        if not stop:
            claims.check_all_done(manifest.shards)
    return _summarise(manifest, tally, skipped=len(mine) - len(pending), stopped_by=stop.signal_name)


def _claims(worker: Worker, storage: Storage, pending: list[Unit]) -> Claims[Unit]:
    return QueueClaims(storage, pending, lambda unit: unit.tokens) if worker.queue else ShareClaims(storage, pending)


def _score_units(
    engine: Engine,
    plan: Manifest,
    first: Claim[Unit],
    claims: Claims[Unit],
    storage: Storage,
    worker: Worker,
    tally: "_Tally",
    stop: StopRequest,
    config: CacheConfig,
    pending: list[Unit],
    done: set[str],
) -> None:
    """Score the units in order; reading the next unit and writing scored ones overlap with the engine.

    The next unit is claimed when a unit's last call begins, so that none waits long for a slow one. All workers make
    the same code table, of the first call of the plan's first unit: so the shards are those of a single worker.
    """
    tokens_per_call = BATCHES_PER_CALL * config.engine.max_batch_tokens

    def read(unit: Unit) -> tuple[MemberIndex, list[Part]]:
        sequences, tokens_index = read_unit(storage, unit, plan.teacher.vocab_size)
        parts: dict[int, Part] = {}
        for part, sample in numbered_parts(sequences, tokens_per_call):
            parts.setdefault(part, []).append((sample, to_request(sample, plan.capture)))
        return tokens_index, list(parts.values())

    def claim_next() -> tuple[Claim[Unit] | None, MemberIndex, list[Part]]:
        following = claims.next()
        return (None, tokens_index, []) if following is None else (following, *read(following.unit))

    with Progress(total_tokens=sum(unit.tokens for unit in pending)) as progress:

        def on_commit(unit: Unit, rows: int, entropy: float) -> None:
            claims.done(unit)
            tally.add(unit, rows, entropy)
            progress.committed(tally.mean_entropy)

        with (
            ThreadPoolExecutor(1, "read") as reading,
            UnitWriter(storage, plan, worker.owner, on_commit, config.output.encode_threads) as writer,
        ):
            if not done and first.unit.name != plan.units[0].name:
                writer.learn(_first_call(engine, read(plan.units[0])[1]))
            tally.start()
            claim: Claim[Unit] | None = first
            tokens_index, parts = read(first.unit)
            while claim is not None and not stop:
                ahead = reading.submit(claim_next) if len(parts) == 1 else None
                writer.begin(claim.unit, tokens_index, claim.lease.storage)
                calls = ([request for _, request in part] for part in parts)
                with closing(engine.score_calls(calls)) as scored:
                    for number, (part, captured) in enumerate(zip(parts, tally.timed(scored), strict=True), start=1):
                        if number == len(parts) - 1:
                            ahead = reading.submit(claim_next)
                        progress.scored(sum(len(sample.input_ids) for sample, _ in part))
                        if number == 1 and claim.unit.name == plan.units[0].name:
                            writer.learn(captured)
                        writer.add([sample for sample, _ in part], captured)
                writer.commit()
                assert ahead is not None
                claim, tokens_index, parts = ahead.result()
                if claim is None and (claim := claims.next_or_wait(stop)) is not None:
                    tokens_index, parts = read(claim.unit)
    tally.stop()


def _first_call(engine: Engine, parts: list[Part]) -> list[Captured]:
    """The signals of a unit's first call."""
    return next(iter(engine.score_calls([[request for _, request in parts[0]]])))


def _write_manifest(storage: Storage, plan: Manifest, done: set[str]) -> Manifest:
    """Write the manifest of all shards committed so far, one worker at a time; ``done``: committed before this run.

    Not if another worker has written that of the complete cache, and nothing is to be removed. Raises
    CorruptCacheError if a file of a committed shard is missing, ConflictError if the plan is no longer ``plan``.
    """
    stale = {entry.name for entry in plan.shards} - done  # entries of earlier files, whose marks were deleted
    while True:
        if not stale and (present := _present(storage, plan)).complete and not _has_leftovers(storage, present):
            return present
        try:
            return _write_all(storage, plan, stale)
        except Held as held:
            if not wait_for_workers(held.holder):
                raise
        time.sleep(POLL * random.uniform(0.5, 1.5))


def _has_leftovers(storage: Storage, manifest: Manifest) -> bool:
    """Whether killed workers left leases or files at a complete cache, which are removed under the manifest's lease."""
    return bool(storage.lease_names() or garbage(storage.names(), manifest))


def _write_all(storage: Storage, plan: Manifest, stale: set[str]) -> Manifest:
    """Write the manifest, unless another process does (Held); ``stale``: shards whose entries are made anew."""
    with part_lease(storage, "manifest", RUNNING) as lease:
        manifest = assemble(storage, _without(_present(storage, plan), stale))
        check_committed(storage, manifest)
        manifest = write_manifest(lease.storage, manifest)
        if manifest.complete:
            remove_dead_parts(storage)
            remove_garbage(lease.storage, manifest)
    return manifest


def _present(storage: Storage, plan: Manifest) -> Manifest:
    """The manifest as it is now, with its lists. Raises ConflictError if its plan is not ``plan``."""
    present = with_lists(storage, read_manifest(storage))
    if [unit.tokens_file for unit in present.units] != [unit.tokens_file for unit in plan.units]:
        raise ConflictError(f"{storage.where(MANIFEST)}: the cache was replanned during this run; run again")
    return present


def _without(plan: Manifest, shards: set[str]) -> Manifest:
    """``plan`` without the entries of these shards."""
    return plan.model_copy(update={"shards": [entry for entry in plan.shards if entry.name not in shards]})


class _Tally:
    """Running totals of this run. ``add`` is called in the writer's thread, all else in the engine's."""

    def __init__(self) -> None:
        self.units = self.samples = self.tokens = self.rows = 0
        self.entropy = self.engine_load_seconds = self.engine_seconds = 0.0
        self._started = self._engine_stopped = self.seconds = 0.0

    def start(self) -> None:
        self._started = self._engine_stopped = time.perf_counter()

    def stop(self) -> None:
        self.seconds = time.perf_counter() - self._started

    def timed(self, scored: Iterator[list[Captured]]) -> Iterator[list[Captured]]:
        """Pass the engine's results through, and count the time that they take as the engine's."""
        while True:
            started = time.perf_counter()
            captured = next(scored, None)
            self._engine_stopped = time.perf_counter()
            self.engine_seconds += self._engine_stopped - started
            if captured is None:
                return
            yield captured

    def add(self, unit: Unit, rows: int, entropy: float) -> None:
        self.units += 1
        self.samples += unit.samples
        self.tokens += unit.tokens
        self.rows += rows
        self.entropy += entropy

    @property
    def tokens_per_second(self) -> float:
        seconds = self.seconds or time.perf_counter() - self._started
        return self.tokens / seconds

    @property
    def mean_entropy(self) -> float | None:
        return self.entropy / self.rows if self.rows else None

    @property
    def engine_idle_share(self) -> float | None:
        return 1 - self.engine_seconds / (self._engine_stopped - self._started) if self.engine_seconds else None


def _summarise(manifest: Manifest, tally: _Tally, skipped: int, stopped_by: str | None) -> Summary:
    return Summary(
        units_scored=tally.units,
        units_skipped=skipped,
        samples=tally.samples,
        tokens=tally.tokens,
        seconds=tally.seconds,
        engine_load_seconds=tally.engine_load_seconds,
        tokens_per_second=tally.tokens_per_second if tally.units else 0.0,
        engine_idle_share=tally.engine_idle_share,
        mean_entropy=tally.mean_entropy,
        peak_memory_bytes=peak_memory_bytes(),
        cache_samples=manifest.totals.samples,
        cache_tokens=manifest.totals.tokens,
        bytes_per_token=manifest.bytes_per_token(),
        complete=manifest.complete,
        manifest_digest=manifest.digest(),
        stopped_by=stopped_by,
    )


def parse_worker(text: str | None, queue: bool = False) -> Worker:
    """Parse RANK/WORLD: ``"0/4"`` is the first of four workers; None: all units. Raises UserError."""
    if text is None:
        return Worker(queue=queue)
    if queue:
        raise UserError(f"--worker {text}: with --queue a worker has no share of its own; give one of the two")
    rank, slash, world = text.partition("/")
    if not (slash and rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(f"--worker: {text!r}: expected RANK/WORLD with RANK below WORLD, for example 0/4")
    return Worker(int(rank), int(world))


def summary_dict(summary: Summary) -> dict[str, object]:
    """The summary as plain data for JSON."""
    return asdict(summary)
