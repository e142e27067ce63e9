"""Scaling of start-up, memory and sampler with the cache: up to 100,000 shards and 100 million samples, simulated.

All shards hold the same short random samples under the same keys; manifests, shard tables and indexes are real. Of
large caches, only the shards that are read are written. Each cache is opened in its own process as a trainer worker
does, but without a student: only the parts that depend on the cache are timed.

Two modes of training: one sample a row; and packed rows with a validation split, where the order depends on keys and
lengths of all earlier samples, so that resuming relies on the place recorded in the checkpoint.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support.results import Row, at_least, at_most, exit_status, write_results

SHARD_SAMPLES, LENGTH, VOCABULARY, K = 1000, 16, 1000, 8
SHARDS = (1_000, 10_000, 100_000)
BATCH = 32
SAMPLED = 5_000_000
PLAIN, PACKED = "one sample a row", "packed, a split"
START_SECONDS, MEMORY_MIB, SAMPLES_PER_SECOND, RESUME_SECONDS, STATE_BYTES = 5, 300, 1e6, 2, 1024


def main() -> int:
    """Run the benchmark; returns the exit status."""
    from benchmarks.support.common import FOLDER, in_own_process  # heavy: imports everything a caching run needs

    found: dict[int, dict[str, dict[str, float]]] = {}
    for shards in SHARDS:
        folder = FOLDER / f"scale-{shards}"
        shutil.rmtree(folder, ignore_errors=True)
        cache = SimulatedCache(folder, shards)
        found[shards] = {}
        for way in (PLAIN, PACKED):
            cache.write_shards(in_own_process(shards_read, str(folder), way))
            found[shards][way] = in_own_process(measure, str(folder), way)
        shutil.rmtree(folder)
    rows = [row for shards, ways in found.items() for row in rows_of(shards, ways[PLAIN], ways[PACKED])]
    raw = {"caches": {str(shards): ways for shards, ways in found.items()}, "samples_per_shard": SHARD_SAMPLES}
    title = f"Scale, simulated: shards of {SHARD_SAMPLES:,} samples, 64 mixed at a time"
    write_results("scale", title, rows, raw)
    return exit_status(rows)


def rows_of(shards: int, plain: dict[str, float], packed: dict[str, float]) -> list[Row]:
    """The figures of one cache; the largest cache and that of a million samples have bars."""
    samples = shards * SHARD_SAMPLES
    start = f"{shards:,} shards, {samples:,} samples: start"
    memory, sampler = "… peak memory of the process", "… sampler"
    resume, resume_packed = "… first batch after a resume amid an epoch", "… the same, packed, with a split"
    state = "… state of the data in a checkpoint"
    speed = plain["samples_per_second"] / 1e6
    rows = {
        start: at_most(start, plain["start"], "s", START_SECONDS),
        memory: at_most(memory, plain["peak_mib"], "MiB", MEMORY_MIB),
        sampler: at_least(sampler, speed, "M samples/s", SAMPLES_PER_SECOND / 1e6),
        resume: at_most(resume, plain["resume"], "s", RESUME_SECONDS),
        resume_packed: at_most(resume_packed, packed["resume"], "s", RESUME_SECONDS),
        state: at_most(state, packed["state_bytes"], "B", STATE_BYTES),
    }
    with_bar = {start, memory, sampler} if shards == SHARDS[-1] else set()
    with_bar |= {resume, resume_packed, state} if samples == 10**6 else set()
    shown = [row if name in with_bar else replace(row, bar=None, holds=None) for name, row in rows.items()]
    shown.insert(2, Row("… of which the interpreter and its libraries", plain["before_mib"], "MiB"))
    shown.insert(4, Row("… sampler, packed, with a split", packed["samples_per_second"] / 1e6, "M samples/s"))
    return shown


class SimulatedCache:
    """A cache of identical shards, of which only a few are written."""

    def __init__(self, folder: Path, shards: int) -> None:
        from schemas.cache_config import (
            CaptureConfig,
            CodecConfig,
            CorpusConfig,
            LogitsCapture,
            Provenance,
            SourceConfig,
        )
        from schemas.manifest import (
            CorpusCounts,
            CorpusInfo,
            Manifest,
            ShardEntry,
            ShardIndex,
            TeacherInfo,
            TokenizerInfo,
            Totals,
            Unit,
        )
        from teacher_cache.codec.permutation import build_code_table, encode_table, table_digest, table_path
        from teacher_cache.shards.marks import write_manifest
        from teacher_cache.shards.shard_table import shard_name
        from teacher_cache.shards.storage import Storage, file_entry

        self.folder, self.storage = folder, Storage(str(folder))
        capture = CaptureConfig(logits=LogitsCapture(k=K))
        table = build_code_table(np.ones(VOCABULARY))
        digest = table_digest(table)
        tables = {digest: self.storage.write(table_path(digest), encode_table(table))}
        lengths = np.random.default_rng(0).integers(4, LENGTH + 1, SHARD_SAMPLES).tolist()
        keys = [f"{sample:032x}" for sample in range(SHARD_SAMPLES)]
        self.tars = write_tars(self.storage, capture, table, keys, lengths)
        name = shard_name(0)
        index = ShardIndex(
            name=name,
            keys=keys,
            num_tokens=lengths,
            layers=["base"] * SHARD_SAMPLES,
            table=digest,
            signals=self.tars,
        )
        before, after = (index.model_dump_json() + "\n").encode().split(name.encode())
        self.mark = lambda number: before + shard_name(number).encode() + after
        files = {signal: member.file for signal, member in self.tars.items()}
        units, entries = [], []
        for number in range(shards):
            mark = file_entry(self.mark(number))
            named = {"name": shard_name(number), "samples": SHARD_SAMPLES, "tokens": sum(lengths)}
            units.append(Unit(**named, tokens_file=files["tokens"]))
            entries.append(ShardEntry(**named, index=mark, files=files))
        nothing = dict.fromkeys(CorpusCounts.model_fields, 0)
        totals = Totals(samples=shards * SHARD_SAMPLES, tokens=shards * sum(lengths), bytes={}, index_bytes=0)
        manifest = Manifest(
            teacher=TeacherInfo(
                name="none", revision=None, dtype="float32", architecture="None", num_layers=1, hidden_size=8,
                vocab_size=VOCABULARY, fingerprint="a" * 64,
            ),
            tokenizer=TokenizerInfo(fingerprint="b" * 64, vocab_size=VOCABULARY),
            corpus=CorpusInfo(
                fingerprint="c" * 64,
                settings=CorpusConfig(sources=[SourceConfig(path="none", format="text")], max_tokens=LENGTH),
                counts=CorpusCounts(**nothing),
            ),
            capture=capture, codec=CodecConfig(), provenance=Provenance(), tokens_per_shard=SHARD_SAMPLES * LENGTH,
            units=units, complete=True, shards=entries, tables=tables, totals=totals,
        )  # fmt: skip
        if write_manifest(self.storage, manifest).shard_table is None:
            self.write_shards(range(shards))  # without a shard table, opening a cache checks all files

    def write_shards(self, numbers: Iterable[int]) -> None:
        """Write these shards: indexes, and tars as hard links."""
        from teacher_cache.shards.marks import mark_name, tar_name
        from teacher_cache.shards.shard_table import shard_name

        for number in numbers:
            name = shard_name(number)
            (self.folder / mark_name(name)).write_bytes(self.mark(number))
            for signal in self.tars:
                if not (self.folder / tar_name(name, signal)).exists():
                    os.link(self.folder / tar_name(shard_name(0), signal), self.folder / tar_name(name, signal))


def write_tars(storage: Any, capture: Any, table: np.ndarray, keys: list[str], lengths: list[int]) -> dict[Any, Any]:
    """Write the first shard's tars; returns signal → member index."""
    from benchmarks.support.longer_cache import write_tar
    from schemas.cache_config import CodecConfig
    from teacher_cache.codec.permutation import CodeTable
    from teacher_cache.codec.tokens import encode_tokens
    from teacher_cache.shards.shard_table import shard_name
    from teacher_cache.signals.logits.codec import LogitsCodec

    codec = LogitsCodec(capture.logits, CodecConfig(), CodeTable(table))
    rng = np.random.default_rng(1)
    payloads: dict[Any, list[bytes]] = {
        "tokens": [encode_tokens(random_tokens(key, n, rng)) for key, n in zip(keys, lengths, strict=True)],
        "logits": [codec.encode(random_logits(n, len(capture.logits.temperatures), rng)) for n in lengths],
    }
    return {signal: write_tar(storage, shard_name(0), signal, keys, parts) for signal, parts in payloads.items()}


def random_tokens(key: str, n: int, rng: np.random.Generator) -> Any:
    """A random TokenSample of ``n`` tokens."""
    from teacher_cache.records import TokenSample

    ids, position = rng.integers(0, VOCABULARY, n).astype(np.uint32), np.arange(n, dtype=np.uint32)
    return TokenSample(key, "none", "base", "x" * n, ids, position < n - 1, position, position + 1)


def random_logits(n: int, n_temperatures: int, rng: np.random.Generator) -> Any:
    """A random LogitsSample of ``n`` tokens."""
    from teacher_cache.records import LogitsSample

    return LogitsSample(
        num_tokens=n,
        positions=np.arange(n - 1, dtype=np.int32),
        counts=np.full(n - 1, K, np.int32),
        ids=np.argsort(rng.random((n - 1, VOCABULARY)), axis=1)[:, :K].astype(np.int32),
        logprobs=np.tile(np.log(np.arange(K, 0, -1) / 50).astype(np.float32), (n - 1, 1)),
        next_logprob=np.full(n - 1, -5, np.float32),
        log_partition=np.zeros((n - 1, n_temperatures), np.float32),
    )


def opened(folder: str, way: str, known: Any = None) -> tuple[Any, Any, Any]:
    """Reader, order and row plan of a training run on the cache."""
    from teacher_cache.shards.reader import CacheReader
    from trainer.data.order import START, CacheOrder, Shuffle
    from trainer.data.row_plan import plan_rows
    from trainer.data.selection import Selection, Subset

    reader = CacheReader(folder)
    selection = Selection(validation_fraction=0.01 if way == PACKED else 0.0)
    order = CacheOrder(
        Subset(reader, selection),
        Shuffle(0, 64),
        4 * LENGTH if way == PACKED else None,
        START if known is None else known,
    )
    return reader, order, plan_rows([order], None, global_batch=BATCH, epochs=1, max_steps=len(reader))


def half_way(order: Any, way: str) -> Any:
    """The place half-way through an epoch."""
    from trainer.data.order import Place

    if way == PLAIN:
        return order.place(int(order.subset.cache.shard_sizes.sum()) // 2)
    groups = order.n_groups // 2
    return Place(first_row=groups * 10_000, epoch=0, group=groups)  # only the group matters


def shards_read(folder: str, way: str) -> list[int]:
    """The shards that ``measure`` reads."""
    _, order, _ = opened(folder, PLAIN)
    half, mixed = half_way(order, way), order.shuffle.shards_mixed
    groups = {half.group, half.group + 1}
    if way == PACKED:
        groups |= set(range(packed_groups(order) + 1))
    groups = {group for group in groups if group < order.n_groups}
    return [int(shard) for group in groups for shard in order._shards(0)[group * mixed : (group + 1) * mixed]]


def packed_groups(order: Any) -> int:
    """Number of groups that the packed sampler is timed on."""
    return min(order.n_groups, 4)


def measure(folder: str, way: str) -> dict[str, float]:
    """Seconds, memory and speed; to be run in its own process."""
    import teacher_cache.shards.reader  # noqa: F401
    import trainer.data.row_plan  # noqa: F401
    from trainer.data.data_state import DataState

    before = peak_mib()
    started = time.perf_counter()
    reader, order, plan = opened(folder, way)
    order.place(0)
    start = time.perf_counter() - started
    started = time.perf_counter()
    samples = 0
    for first in range(0, SAMPLED, BATCH):
        rows = plan.rows(range(first, first + BATCH))
        samples += sum(map(len, rows))
        if way == PACKED and order.place(first + BATCH).group >= packed_groups(order):
            break
    per_second = samples / (time.perf_counter() - started)
    known = half_way(order, way)
    del reader, order, plan
    started = time.perf_counter()
    reader, _, resumed = opened(folder, way, known)
    first = known.first_row + 7
    batch = reader.read_rows(resumed.rows(range(first, first + BATCH)))
    seconds = time.perf_counter() - started
    assert batch.loss_mask.any()
    state = DataState(cache_digest=reader.manifest.digest(), rows_consumed=first, places=[tuple(known)])
    return {
        "start": start,
        "samples_per_second": per_second,
        "resume": seconds,
        "state_bytes": len(state.model_dump_json()),
        "before_mib": before,
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss would include the parent's
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
