"""``teacher-cache run --queue`` with two workers and units of very unequal cost; and what the queue itself costs.

Makespan: processes of their own run the whole job on a tiny random model. Its engine sleeps after each call for as long
as an accelerator would take, in proportion to the squares of the lengths, so that the figures do not depend on how
busy this machine is. The corpus alternates between long documents and short ones, each pair of units of one expensive
and one cheap. Time runs from the moment when all engines are loaded to the last commit mark. The ideal is half of what
one worker takes.

Overhead: one process claims unit after unit, checks each lease as commits do, and scores nothing, on a folder and on an
S3 server on this machine (moto). Seconds and requests a unit are related to a unit of 262,144 tokens (the default) at
10,000 tokens a second; on S3 at 30 ms a request also.
"""

import multiprocessing
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.support.results import Row, at_least, at_most, exit_status, write_results
from schemas.cache_config import CacheConfig
from schemas.load import validate
from schemas.manifest import Unit
from teacher_cache import job
from teacher_cache.engines import Engine
from teacher_cache.plan import load_or_make_plan
from teacher_cache.queue_claims import QueueClaims
from teacher_cache.records import Captured, Request
from teacher_cache.shards.lease import HEARTBEAT
from teacher_cache.shards.marks import mark_names
from teacher_cache.shards.storage import Storage
from tests.support.models import write_random_teacher
from tests.support.s3_server import BUCKET, s3_server
from tests.support.workspace import cache_tree

FOLDER = Path("runs/bench/queue")
PAIRS = 24  # of an expensive unit and a cheap one
SECONDS_PER_SQUARE = 1 / 130**2  # of a sequence's length: 1 s for 130 tokens
UNIT_SECONDS = 262_144 / 10_000
S3_SECONDS = 0.03  # a request
MAKESPAN, MODULO, OVERHEAD = 1.1, 1.3, 2.0
Shared = tuple[Any, Any]


def main() -> int:
    """Run the benchmark; returns the exit status."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_random_teacher(FOLDER / "teacher")
    write_corpus(FOLDER / "corpus")
    one = seconds([job.Worker(queue=True)], "one")
    queue = seconds([job.Worker(queue=True)] * 2, "queue")
    modulo = seconds([job.Worker(rank, 2) for rank in range(2)], "modulo")
    rows = [
        Row("one worker", one, "s"),
        at_most("two workers, --queue: makespan ÷ ideal", 2 * queue / one, "×", MAKESPAN),
        at_least("two workers, --worker i/2: makespan ÷ ideal", 2 * modulo / one, "×", MODULO),
    ]
    raw: dict[str, Any] = {"one": one, "queue": queue, "modulo": modulo}
    with s3_server():
        for place, url in (("folder", str(FOLDER / "claimed")), ("S3 (moto)", f"s3://{BUCKET}/claimed")):
            taken, requests = claiming(url)
            raw[place] = {"seconds": taken, "requests": requests}
            beats = 2 * UNIT_SECONDS / HEARTBEAT
            rows.append(at_most(f"{place}: claiming, of a unit's time", 100 * taken / UNIT_SECONDS, "%", OVERHEAD))
            if requests:
                total = sum(requests.values())
                share = 100 * (total + beats) * S3_SECONDS / UNIT_SECONDS
                rows.append(Row("… requests a unit, without heartbeats", total))
                rows.append(Row("… and heartbeats", beats))
                rows.append(Row("… their time at 30 ms each, of a unit's, were none of it overlapped", share, "%"))
    shutil.rmtree(FOLDER)
    write_results("queue_makespan", "A queue of units of very unequal cost, and what it costs", rows, raw)
    return exit_status(rows)


def write_corpus(folder: Path) -> None:
    """Write long documents, a unit each, and after each of them as many short ones as make a unit."""
    folder.mkdir(parents=True)
    for pair in range(PAIRS):
        words = [f"{(pair + n) % 90 + 10}" for n in range(100 + pair)]
        (folder / f"{pair:03d}-a.txt").write_text(" ".join(words))
        for n in range(9):
            (folder / f"{pair:03d}-b{n}.txt").write_text(" ".join([f"{pair:02d}", f"{n:02d}", *words[:6]]))


def config(url: str) -> CacheConfig:
    """The job's configuration: a unit of one long document, or of several short ones."""
    capture = {"logits": {"k": 8}, "draws": None}
    tree = cache_tree(
        FOLDER / "teacher", FOLDER / "corpus", Path("none"), max_tokens=480, tokens_per_shard=90, capture=capture
    )
    tree["output"]["path"] = url
    return validate(CacheConfig, tree, where="benchmark")


def seconds(workers: Sequence[job.Worker], name: str) -> float:
    """Seconds that these workers take together, each in a process of its own."""
    settings = config(str(FOLDER / name))
    load_or_make_plan(settings, Storage(settings.output.path))
    context = multiprocessing.get_context("spawn")
    loaded, begun = context.Barrier(len(workers)), context.Value("d", 0.0)
    processes = [context.Process(target=work, args=(settings, worker, (loaded, begun))) for worker in workers]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            sys.exit(f"error: a worker ended with exit status {process.exitcode}")
    marks = [FOLDER / name / mark for mark in mark_names(Storage(settings.output.path))]
    return max(mark.stat().st_mtime for mark in marks) - begun.value


def work(settings: CacheConfig, worker: job.Worker, shared: Shared) -> None:
    """Run a worker whose engine takes as long as an accelerator would."""
    open_engine = job.open_engine
    loaded, begun = shared

    def open_slow(config: CacheConfig) -> Engine:
        engine = open_engine(config)
        loaded.wait(timeout=300)  # a worker that dies does not hold up the others for ever
        begun.value = time.time()
        score = engine.score_calls

        def score_slowly(calls: Iterable[Sequence[Request]]) -> Iterator[list[Captured]]:
            for requests in calls:
                started = time.perf_counter()
                (found,) = score([requests])
                wanted = SECONDS_PER_SQUARE * sum(len(request.input_ids) ** 2 for request in requests)
                time.sleep(max(0.0, wanted - (time.perf_counter() - started)))
                yield found

        engine.score_calls = score_slowly  # type: ignore[assignment]
        return engine

    with mock.patch.object(job, "open_engine", open_slow):
        job.run(settings, worker)


def claiming(url: str) -> tuple[float, dict[str, float]]:
    """Seconds, and requests to the store by kind, that claiming and releasing a unit takes."""
    settings = config(url)
    storage = Storage(url)
    plan = load_or_make_plan(settings, storage)
    with counted() as requests, QueueClaims(storage, plan.units, size) as claims:
        started = time.perf_counter()
        while (claim := claims.next()) is not None:
            claim.lease.check()
            claims.done(claim.unit)
        taken = time.perf_counter() - started
    return taken / len(plan.units), {kind: n / len(plan.units) for kind, n in requests.items()}


def size(unit: Unit) -> int:
    """As the job estimates it."""
    return unit.tokens


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the requests of s3fs by kind."""
    from s3fs import S3FileSystem

    call, found = S3FileSystem._call_s3, Counter[str]()

    async def count(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        found[method] += 1
        return await call(self, method, *arguments, **options)

    with mock.patch.object(S3FileSystem, "_call_s3", count):
        yield found


if __name__ == "__main__":
    sys.exit(main())
