"""Reading speed of cached rows as padded batches, in one process, against other streaming readers.

All readers hold the same rows, of some 400 sequences of 512 to 2,048 tokens. Each runs in its own process, without
worker processes, with whatever threads it starts itself, and is first checked to return every row exactly once and
unchanged. Then rounds of one epoch alternate. The best round is reported, because other programs on the machine can
only slow a round down; all rounds are in the raw figures.

First from a local disk, with everything in the page cache. Then from an S3 server (moto) on this machine, with nothing
kept locally, so that a round includes opening. The server shares the processor's cores with the reader and there is no
network in between; the slower the link, the more an advantage it is to need few bytes.

This cache is read in a fully random order with every checksum verified. From S3 that order needs all shards from the
first batch on, and waits for them; so it is also read two shards at a time. The other readers shuffle as far as they
support it and verify nothing. They read compressed data, or uncompressed arrays of two to three times the bytes. Shards
of litdata and mosaicml-streaming have 8 MB, as this cache's, because they read these faster from S3 than their default
of 64 MB; the others do not, and have 64 MB.
"""

import statistics
from typing import Any

from benchmarks.streaming.arms import CACHE, ENVIRONMENT, ROWS, Arm, Prepared, folder_of
from benchmarks.streaming.delivered_rows import Reference
from benchmarks.streaming.ours import Ours
from benchmarks.streaming.readers import OURS, OURS_MIXED, OURS_ONE_THREAD, PLAIN, STREAMERS
from benchmarks.streaming.row_storage import BATCH
from benchmarks.support.common import K, shared_cache
from benchmarks.support.environments import REQUIREMENTS, make_environment
from benchmarks.support.longer_cache import longer_cache
from benchmarks.support.results import Row, at_least, exit_status, write_results
from teacher_cache.shards.reader import DECODE_THREADS, CacheReader
from tests.support.s3_server import Server, s3_server

PER_SEQUENCE = 12
ROUNDS, ROUNDS_FROM_S3 = 10, 5
MIN_OF_OTHERS = 1


def main() -> int:
    """Run the benchmark; returns the exit status."""
    tokens = make_rows()
    missing = make_environment(ENVIRONMENT, REQUIREMENTS / "streaming-bench.txt")
    local = from_disk(missing)
    with s3_server() as server:
        remote = from_s3(local, server)
    rows = as_rows(local, remote, tokens)
    title = (
        f"Streaming: batches of {BATCH} sequences, K = {K}, one process, no workers, "
        f"best of {ROUNDS} rounds, from S3 {ROUNDS_FROM_S3}"
    )
    raw = {
        "batch": BATCH,
        "tokens": tokens,
        "threads": DECODE_THREADS,
        "packages": {arm.kind.package: arm.prepared.version for arm in local if arm.prepared.version},
        "disk": raw_figures(local, tokens),
        "s3": raw_figures(remote, tokens),
    }
    write_results("streaming", title, rows, raw)
    return exit_status(rows)


def from_disk(missing: str | None) -> list[Arm]:
    """Every reader's rounds from the local disk."""
    arms = [Arm(name) for name in STREAMERS if name != OURS_MIXED]  # from disk, the order makes no difference
    for arm in arms:
        arm.prepare(missing)
    run_rounds(arms, ROUNDS)
    return arms


def from_s3(local: list[Arm], server: Server) -> list[Arm]:
    """The same from the S3 server, for the readers that could write their rows."""
    problems = {arm.kind: arm.prepared.problem for arm in local}
    arms = [Arm(name) for name in STREAMERS if name != OURS_ONE_THREAD]
    for arm in arms:
        problem = problems.get(arm.kind)
        if problem is not None:
            arm.prepared = Prepared(problem=problem)
        else:
            url = server.upload(folder_of(arm.kind), arm.kind.__name__)
            arm.prepare(None, (url, server.endpoint))
    run_rounds(arms, ROUNDS_FROM_S3, server)
    return arms


def run_rounds(arms: list[Arm], rounds: int, server: Server | None = None) -> None:
    """Run ``rounds`` alternating rounds of all arms, after one warm-up round each; then end their processes."""
    for number in range(1, rounds + 2):
        for arm in arms:
            if arm.prepared.problem is None:
                before = server.processor_seconds if server else 0.0
                arm.round(number)
                arm.server_seconds.append((server.processor_seconds if server else 0.0) - before)
    for arm in arms:
        arm.close()
        del arm.rounds[:1], arm.server_seconds[:1]


def make_rows() -> int:
    """Write the cache (unless it exists) and the reference; returns their number of tokens."""
    longer_cache(shared_cache()[0], CACHE, PER_SEQUENCE)
    reader = CacheReader(str(CACHE))
    Reference.save(ROWS, reader)
    return int(reader.num_tokens.sum())


def as_rows(local: list[Arm], remote: list[Arm], tokens: int) -> list[Row]:
    """The table's rows; the bars ignore readers that did not run."""
    speeds, speeds_from_s3 = speeds_of(local, tokens), speeds_of(remote, tokens)
    ours, ours_from_s3 = speeds.pop(OURS), speeds_from_s3.pop(OURS)
    speeds.pop(OURS_ONE_THREAD, None)
    speeds_from_s3.pop(OURS_MIXED, None)
    compressed = [speed for name, speed in speeds.items() if not name.endswith(PLAIN)]
    rows = [
        at_least(f"disk: {OURS} ÷ the fastest other that compresses", ours / max(compressed), "×", MIN_OF_OTHERS),
        at_least(
            f"disk: … ÷ the fastest of all, uncompressed {PLAIN} too", ours / max(speeds.values()), "×", MIN_OF_OTHERS
        ),
        at_least(
            f"S3: {OURS} ÷ the fastest other of all", ours_from_s3 / max(speeds_from_s3.values()), "×", MIN_OF_OTHERS
        ),
    ]
    for arm in local:
        checks = "all checksums verified" if issubclass(arm.kind, Ours) else "checks nothing"
        size = f"{arm.prepared.bytes_on_disk / tokens:.0f}"
        what = f"disk: {arm.name}: {arm.kind.shuffle}; {checks}"
        rows.append(row_of(arm, what, ours, tokens, size, "B/token"))
    for arm in remote:
        share = f"{100 * server_share(arm):.0f}" if arm.rounds else ""
        rows.append(row_of(arm, f"S3: {arm.name}", ours_from_s3, tokens, share, "% of a core for the server"))
    return rows


def row_of(arm: Arm, what: str, ours: float, tokens: int, last: str, unit: str) -> Row:
    """The table row of an arm's best round."""
    if arm.prepared.problem is not None:
        return Row(what, arm.prepared.problem)
    speed = tokens / min(arm.seconds) / 1e6
    return Row(what, f"{speed:.2f} · {ours / speed:.2f} · {last}", f"M tok/s · {OURS} ÷ it · {unit}")


def speeds_of(arms: list[Arm], tokens: int) -> dict[str, float]:
    """Million tokens a second in each arm's best round. Raises RuntimeError when this cache could not be read."""
    if arms[0].prepared.problem is not None:
        raise RuntimeError(f"{arms[0].name}: {arms[0].prepared.problem}")
    return {arm.name: tokens / min(arm.seconds) / 1e6 for arm in arms if arm.rounds}


def server_share(arm: Arm) -> float:
    """The server's processor time in the best round, as a share of the round's duration."""
    best = min(range(len(arm.rounds)), key=arm.seconds.__getitem__)
    return arm.server_seconds[best] / arm.seconds[best]


def raw_figures(arms: list[Arm], tokens: int) -> dict[str, Any]:
    """All measurements of the arms."""
    ran = [arm for arm in arms if arm.rounds]
    return {
        "seconds": {arm.name: arm.seconds for arm in ran},
        "seconds_to_the_first_batch": {arm.name: [each.first_batch for each in arm.rounds] for arm in ran},
        "processor_seconds": {arm.name: [each.processor_seconds for each in arm.rounds] for arm in ran},
        "processor_seconds_of_the_server": {arm.name: arm.server_seconds for arm in ran},
        "median_million_tokens_per_second": {arm.name: tokens / statistics.median(arm.seconds) / 1e6 for arm in ran},
        "largest_error": {arm.name: arm.prepared.error for arm in ran},
        "problems": {arm.name: arm.prepared.problem for arm in arms if arm.prepared.problem},
    }
