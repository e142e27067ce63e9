"""Several processes on one curation: chunks are claimed in the scratch folder, what compares all is done by one.

A process of the queue holds a lease on a part of its own at both places for as long as it works, so that nobody else
has them. One reads the input, with both places to itself, while the others wait.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from schemas.curate_config import CurateConfig
from teacher_cache.claims import CURATING_QUEUE, is_short
from teacher_cache.curated.curated_place import CURATED
from teacher_cache.curation import stages
from teacher_cache.curation.chunk_worker import ChunkWorker
from teacher_cache.curation.curation_run import CurationRun, Planned
from teacher_cache.curation.hands import Fenced, Task
from teacher_cache.curation.worker_pool import WorkerPool
from teacher_cache.plan import wait_for_workers
from teacher_cache.queue_claims import QueueClaims
from teacher_cache.shards.holder import Holder
from teacher_cache.shards.lease import end_dead_parts, only_place, part_lease, remove_dead_parts
from teacher_cache.shards.marks import mark_name
from teacher_cache.shards.storage import Storage
from teacher_cache.stop_request import StopRequest

CURATING = "teacher-cache, curating"  # command name in the lease on a whole place


@dataclass(frozen=True)
class Chunk:
    """A task, named after its mark."""

    name: str
    task: Task


class ChunkQueue:
    """The ``Hands`` of one process of several."""

    def __init__(self, scratch: Storage, worker: ChunkWorker, pool: WorkerPool) -> None:
        self._scratch, self._worker, self._pool = scratch, worker, pool

    def done(self, action: str, tasks: Iterable[Task]) -> Iterator[None]:
        """Do those that no other process does; returns when all are done, by whomever."""
        chunks = [Chunk(_name(action, task), task) for task in tasks]
        stop = StopRequest()  # never: a signal ends the process, which loses the chunk in hand
        with QueueClaims(self._scratch, chunks, _equal, CURATING_QUEUE) as claims:
            while (claim := claims.next_or_wait(stop)) is not None:
                with self._worker.fenced(claim.lease):
                    getattr(self._worker, action)(*claim.unit.task)
                claims.done(claim.unit)
                yield

    def done_by_one(self, action: str, tasks: Iterable[Task]) -> Iterator[None]:
        """As the pool does it, in one process of all at a time."""
        with part_lease(self._scratch, "device", CURATING_QUEUE, wait_for_workers) as lease:
            present = self._scratch.present()
            left = [task for task in tasks if mark_name(_name(action, task)) not in present]
            for _ in self._pool.done_by_one(action, left):
                lease.check(certain=False)
                yield

    @contextmanager
    def alone(self) -> Iterator[Fenced]:
        """Hold the lease on what compares all."""
        with part_lease(self._scratch, "comparison", CURATING_QUEUE, wait_for_workers) as lease:
            yield lambda storage: storage.fenced(lease)


def curate_with_others(config: CurateConfig, plan: Planned, storage: Storage, scratch: Storage) -> None:
    """Do a share of the work; returns when all of it is done. Raises UserError."""
    run = CurationRun(config, plan, storage, scratch)
    while not storage.exists(CURATED):
        if not run.is_read():
            _read(run, storage, scratch)
        mine = f"worker-{secrets.token_hex(8)}"
        with (
            part_lease(storage, mine, CURATING_QUEUE, is_short),
            part_lease(scratch, mine, CURATING_QUEUE, is_short),
        ):
            if storage.exists(CURATED) or not run.is_read():  # before the leases were held
                continue
            pool = WorkerPool(1, plan.worker, config, scratch.url, plan.reader.layers)
            run.work(ChunkQueue(scratch, plan.worker, pool))
    remove_dead_parts(storage)


def _read(run: CurationRun, storage: Storage, scratch: Storage) -> None:
    """Read the input, unless another process does. Raises Held if processes with other settings are at work."""
    with only_place(storage, CURATING, waits_for_one), only_place(scratch, CURATING, waits_for_one):
        if storage.exists(CURATED) or run.is_read():
            return
        for place in (storage, scratch):
            end_dead_parts(place, CURATING, waits_for_one)
        run.read()


def waits_for_one(holder: Holder | None) -> bool:
    """Wait policy: wait for a process that has the places to itself, not for those of a queue."""
    return holder is not None and holder.command == CURATING


def _name(action: str, task: Task) -> str:
    stage, chunk = task[0].number, task[1]
    name = stages.mark_of(stage, chunk) if action == "transform" else stages.sketch_mark(stage, chunk)
    return name.removesuffix(".json")


def _equal(_: Chunk) -> int:
    return 1
