"""Merging of many small caches, as from teams that each cached a part of a corpus: 1,000 of 5 shards of 160 samples.

The caches are simulated (short random samples, no teacher), but their files are real: tars, indexes and manifests as a
caching run writes them, with unique keys. Measured are the time, the bytes the merge writes, and that every tar of the
union is a hard link to a source's. Random samples of the union are read and compared. Separately, time and memory to
compare the keys of ten million samples.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale import LENGTH, peak_mib
from benchmarks.support.results import Row, at_most, exit_status, write_results

CACHES, SHARDS, SAMPLES = 1_000, 5, 160
COMPARED, KEYS = 500, 10_000_000
SECONDS, KEYS_MIB = 30, 1_000


def main() -> int:
    """Run the benchmark; returns the exit status."""
    from benchmarks.support.common import FOLDER, in_own_process

    folder = FOLDER / "merging"
    shutil.rmtree(folder, ignore_errors=True)
    in_own_process(write_caches, folder, CACHES, SHARDS, SAMPLES)
    os.sync()  # so that pending writes do not slow the measurement
    found = in_own_process(measure, folder)
    keys = in_own_process(compare_keys, KEYS)
    shutil.rmtree(folder)
    rows = as_rows(found, keys)
    raw = {"merge": found, "keys": keys, "caches": CACHES, "shards_per_cache": SHARDS, "samples_per_shard": SAMPLES}
    title = f"Merging {CACHES:,} simulated caches of {SHARDS} shards of {SAMPLES} samples, on one disk"
    write_results("merging", title, rows, raw)
    return exit_status(rows)


def as_rows(found: dict[str, float], keys: dict[str, float]) -> list[Row]:
    """The figures with their bars."""
    return [
        at_most(f"merge to one cache of {found['shards']:,} shards", found["seconds"], "s", SECONDS),
        Row("… processor time; the rest is waiting for the disk to have each index", found["processor_seconds"], "s"),
        at_most("… bytes of tars that are not the sources' own files", found["new_tar_bytes"], "B", 0),
        at_most("… samples that differ from their source's, of those read at random", found["differing"], "", 0),
        Row("… bytes of the tars", found["tar_bytes"] / 2**20, "MiB"),
        Row("… written by the process: indexes, shard table, manifest", found["written_bytes"] / 2**20, "MiB"),
        Row("… peak memory of the process", found["peak_mib"], "MiB"),
        Row(f"keys of {keys['keys']:,} samples compared: processor time", keys["seconds"], "s"),
        at_most("… peak memory beyond what the interpreter takes", keys["peak_mib"], "MiB", KEYS_MIB),
    ]


def key_of(number: int) -> str:
    """A key with a constant digit sum, so that the checksum of its tar header stays valid."""
    return f"{number:016d}{10**16 - 1 - number:016d}"


def write_caches(folder: Path, caches: int, shards: int, samples: int) -> None:
    """Write caches below ``folder`` that have the same samples under different keys."""
    from benchmarks.scale import SimulatedCache, write_tars
    from schemas.manifest import Manifest, ShardIndex, Unit
    from teacher_cache.shards.marks import mark_name, read_manifest, read_table, shard_entry, tar_name, totals_of
    from teacher_cache.shards.shard_table import shard_name
    from teacher_cache.shards.storage import MANIFEST, Storage, file_entry

    like: Manifest = read_manifest(SimulatedCache(folder / "like", 1).storage)
    (digest,) = like.tables
    table = read_table(Storage(str(folder / "like")), digest, like.teacher.vocab_size)
    lengths = np.random.default_rng(0).integers(4, LENGTH + 1, samples).tolist()
    template = Storage(str(folder / "template"))
    members = write_tars(template, like.capture, table, [key_of(i) for i in range(samples)], lengths)
    tars = {signal: Tar(template.read(tar_name(shard_name(0), signal)), members[signal]) for signal in members}
    for number in range(caches):
        cache = folder / "caches" / f"{number:06d}"
        shutil.copytree(folder / "like" / "tables", cache / "tables")
        entries = []
        for shard in range(shards):
            name = shard_name(shard)
            keys = [key_of((number * shards + shard) * samples + i) for i in range(samples)]
            signals: dict[Any, Any] = {}
            for signal, tar in tars.items():
                data, signals[signal] = tar.of(keys)
                (cache / tar_name(name, signal)).write_bytes(data)
            layers = ["base"] * samples
            index = ShardIndex(name=name, keys=keys, num_tokens=lengths, layers=layers, table=digest, signals=signals)
            mark = (index.model_dump_json() + "\n").encode()
            (cache / mark_name(name)).write_bytes(mark)
            entries.append(shard_entry(index, file_entry(mark)))
        units = [
            Unit(name=entry.name, samples=samples, tokens=entry.tokens, tokens_file=entry.files["tokens"])
            for entry in entries
        ]
        corpus = like.corpus.model_copy(update={"fingerprint": f"{number:064x}"})
        lists = {"units": units, "shards": entries, "totals": totals_of(entries), "corpus": corpus}
        (cache / MANIFEST).write_text(like.model_copy(update=lists).to_json())


class Tar:
    """A tar used as a template, with its keys replaced."""

    def __init__(self, data: bytes, member: Any) -> None:
        self._data, self._member = data, member
        self._key_offsets = []  # per member: of the key in its name, and in the payload if it occurs there
        for i, (offset, size) in enumerate(zip(member.offsets, member.sizes, strict=True)):
            inside = data.find(key_of(i).encode(), offset, offset + size)
            self._key_offsets.append([offset - 512] + [inside] * (inside >= 0))

    def of(self, keys: list[str]) -> tuple[bytes, Any]:
        """The file with these keys, and its member index."""
        from schemas.digests import payload_digest
        from teacher_cache.shards.storage import file_entry
        from teacher_cache.shards.tar import checksum

        changed = bytearray(self._data)
        for key, offsets in zip(keys, self._key_offsets, strict=True):
            for offset in offsets:
                changed[offset : offset + len(key)] = key.encode()
        data, spans = bytes(changed), zip(self._member.offsets, self._member.sizes, strict=True)
        payloads = [data[offset : offset + size] for offset, size in spans]
        update = {
            "file": file_entry(data),
            "checksums": [checksum(payload) for payload in payloads],
            "digests": b"".join(map(payload_digest, payloads)),
        }
        return data, self._member.model_copy(update=update)


def measure(folder: Path) -> dict[str, float]:
    """Merge the caches below ``folder`` and check the union; to be run in its own process."""
    from teacher_cache.shards.reader import CacheReader
    from tools.making.merge import merge

    sources = sorted(str(path) for path in (folder / "caches").iterdir())
    before = written_bytes()
    started, worked = time.perf_counter(), time.process_time()
    report = merge(sources, str(folder / "union"))
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    written, peak = written_bytes() - before, peak_mib()
    assert (report.duplicates, report.tars_copied) == (0, 0)

    def tars(where: Path, pattern: str) -> dict[int, int]:
        found = [path.stat() for path in where.glob(pattern)]
        return {each.st_ino: each.st_size for each in found}

    old, new = tars(folder / "caches", "*/*.tar"), tars(folder / "union", "*.tar")
    union = CacheReader(str(folder / "union"))
    per_source = len(CacheReader(sources[0]))
    assert len(union) == report.samples == per_source * len(sources)
    compared = np.random.default_rng(0).choice(len(union), min(COMPARED, len(union)), replace=False).tolist()
    return {
        "seconds": seconds,
        "processor_seconds": worked,
        "shards": report.shards,
        "has_shard_table": union.manifest.shard_table is not None,
        "tar_bytes": sum(new.values()),
        "new_tar_bytes": sum(size for inode, size in new.items() if inode not in old),
        "written_bytes": written,
        "peak_mib": peak,
        "differing": sum(
            not same(union, at, CacheReader(sources[at // per_source]), at % per_source) for at in compared
        ),
    }


def same(one: Any, at: int, other: Any, there: int) -> bool:
    """Whether two readers return the same sample, with the right key and valid checksums."""
    a, b = one.read_rows([[at]]), other.read_rows([[there]])
    arrays = ("input_ids", "loss_mask", "ids", "logprobs", "next_logprob", "log_partition")
    equal = all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in arrays)
    return equal and one.read_tokens(at).key == other.read_tokens(there).key == key_of(at)


def compare_keys(n: int) -> dict[str, float]:
    """Seconds and memory to compare the keys of ``n`` samples; to be run in its own process."""
    from tools.making.duplicates import SampleKeys

    before, started = peak_mib(), time.process_time()
    keys = SampleKeys()
    for first in range(0, n, SAMPLES):
        keys.add(map(key_of, range(first, min(first + SAMPLES, n - 1))))
    keys.add([key_of(7)])
    assert np.flatnonzero(keys.repeated()).tolist() == [n - 1]
    return {"keys": n, "seconds": time.process_time() - started, "peak_mib": peak_mib() - before}


def written_bytes() -> int:
    """Bytes this process has written to files so far."""
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])


if __name__ == "__main__":
    sys.exit(main())
