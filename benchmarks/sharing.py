"""Transfer speed of caches, against bulk file copies.

``cache-tools push`` and ``pull`` (every file's sha256 checked in transit, the manifest last) against unchecked bulk
copies of the same files: fsspec's recursive ``put`` and ``get``; and, if it is on PATH, s5cmd (compiled, not Python),
alone and with sha256sum, which gives the same guarantee. All talk to the same S3 server (moto, in its own process on
this machine) in alternating rounds; figures are medians. The cache has a valid manifest and indexes, and tars of
realistic sizes with random payloads.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.support.results import Row, at_least, exit_status, write_results
from schemas.cache_config import CaptureConfig, CodecConfig, CorpusConfig, Provenance, SourceConfig
from schemas.manifest import CorpusCounts, CorpusInfo, Manifest, ShardIndex, TeacherInfo, TokenizerInfo, Totals, Unit
from teacher_cache.codec.permutation import build_code_table, encode_table, table_digest, table_path
from teacher_cache.shards.marks import assemble, tar_name, write_manifest, write_mark
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.tar import TarWriter
from tests.support.s3_server import BUCKET, Server, s3_server
from tools.sharing.push import copy_cache

FOLDER = Path("runs/bench/sharing")
SHARDS, ROUNDS = 24, 3
SAMPLES = 64  # per shard
MIB = (8, 32)  # smallest and largest logits tar; tokens tars are an eighth of that
VOCABULARY = 1000
OURS, FSSPEC, S5CMD, CHECKED = "cache-tools", "fsspec", "s5cmd", "s5cmd and sha256sum"
MIN_SHARE = 0.9
Copy = Callable[[str, str], object]


def main() -> int:
    """Run the benchmark; returns the exit status."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    source = FOLDER / "source"
    manifest = write_cache(source, SHARDS, MIB)
    n_bytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    n_files = sum(path.is_file() for path in source.rglob("*"))
    with s3_server() as server:
        pushes, pulls = ways(server)
        seconds = {"push": rounds(pushes, pulls, source, server, ROUNDS, up=True)}
        seconds["pull"] = rounds(pushes, pulls, source, server, ROUNDS, up=False)
    shutil.rmtree(FOLDER)
    rows = [row for what in ("push", "pull") for row in rows_of(what, seconds[what], n_bytes)]
    raw = {"shards": len(manifest.shards), "files": n_files, "bytes": n_bytes, "seconds": seconds}
    raw["s5cmd"] = s5cmd_version()
    title = f"Moving a cache of {n_bytes / 1e6:.0f} MB in {n_files} files to and from an S3 server on this machine"
    write_results("sharing", title, rows, raw)
    return exit_status(rows)


def rows_of(what: str, seconds: dict[str, list[float]], n_bytes: int) -> list[Row]:
    """Throughput in one direction, and ours relative to the others."""
    speed = {name: n_bytes / 1e6 / statistics.median(times) for name, times in seconds.items()}
    rows = [Row(f"{what}: {name}", value, "MB/s") for name, value in speed.items()]
    rows.append(at_least(f"{what} ÷ {FSSPEC}", speed[OURS] / speed[FSSPEC], "×", MIN_SHARE))
    if S5CMD not in speed:
        return [*rows, Row(f"{what}: {S5CMD}", "not on PATH")]
    rows.append(at_least(f"{what} ÷ {CHECKED}", speed[OURS] / speed[CHECKED], "×", MIN_SHARE))
    return [*rows, Row(f"{what} ÷ {S5CMD}, which checks nothing", speed[OURS] / speed[S5CMD], "×")]


def ways(server: Server) -> tuple[dict[str, Copy], dict[str, Copy]]:
    """Functions by name: uploads of a folder to a URL, and downloads of a URL to a folder."""
    pushes: dict[str, Copy] = {OURS: copy_cache}
    pulls: dict[str, Copy] = {OURS: copy_cache}
    pushes[FSSPEC] = lambda folder, url: server.store.put(f"{folder}/", f"{url}/", recursive=True)
    pulls[FSSPEC] = lambda url, folder: server.store.get(f"{url}/", f"{folder}/", recursive=True)
    if s5cmd_version() is not None:
        pushes[S5CMD] = lambda folder, url: s5cmd(server, f"{folder}/", f"{url}/")
        pulls[S5CMD] = lambda url, folder: s5cmd(server, f"{url}/*", f"{folder}/")
        pushes[CHECKED] = lambda folder, url: [sha256sum(folder), s5cmd(server, f"{folder}/", f"{url}/")]
        pulls[CHECKED] = lambda url, folder: [s5cmd(server, f"{url}/*", f"{folder}/"), sha256sum(folder)]
    return pushes, pulls


def s5cmd(server: Server, source: str, target: str) -> int:
    """Copy with s5cmd, with its own concurrency; returns the exit status, 0."""
    command = ["s5cmd", "--log", "error", "--endpoint-url", server.endpoint, "cp", source, target]
    return subprocess.run(command, check=True).returncode


def sha256sum(folder: str) -> int:
    """Compute every file's sha256, several in parallel; returns the exit status, 0."""
    files = b"\0".join(os.fsencode(path) for path in Path(folder).rglob("*") if path.is_file())
    command = ["xargs", "-0", "-n", "4", "-P", str(os.cpu_count()), "sha256sum"]
    return subprocess.run(command, input=files, check=True, stdout=subprocess.DEVNULL).returncode


def s5cmd_version() -> str | None:
    """Version of the s5cmd on PATH; None without one."""
    if shutil.which("s5cmd") is None:
        return None
    return subprocess.run(["s5cmd", "version"], check=True, capture_output=True, text=True).stdout.strip()


def rounds(
    pushes: dict[str, Copy], pulls: dict[str, Copy], source: Path, server: Server, n_rounds: int, up: bool
) -> dict[str, list[float]]:
    """Seconds of each tool in each round. After each copy, its file sizes are compared with the source's, and it is
    removed.
    """
    url, folder = f"s3://{BUCKET}/sharing", FOLDER / "fetched"
    if not up:
        pushes[FSSPEC](str(source), url)
    copies = pushes if up else pulls
    seconds: dict[str, list[float]] = {name: [] for name in copies}
    for number in range(n_rounds):
        for name in sorted(copies, key=lambda name: (list(copies).index(name) + number) % len(copies)):
            os.sync()  # so that no tool waits for another's writes
            start = time.perf_counter()
            copies[name](*((str(source), url) if up else (url, str(folder))))
            seconds[name].append(time.perf_counter() - start)
            found = Storage(url if up else str(folder)).sizes()
            if found != Storage(str(source)).sizes():
                raise RuntimeError(f"{name} did not copy all files")
            if up:
                server.store.rm(url, recursive=True)
            else:
                shutil.rmtree(folder)
    if not up:
        server.store.rm(url, recursive=True)
    return seconds


def write_cache(folder: Path, shards: int, mib: tuple[int, int]) -> Manifest:
    """Write a cache of random payloads, with logits tars of ``mib`` MiB (smallest, largest)."""
    rng, storage = np.random.default_rng(0), Storage(str(folder))
    table = build_code_table(np.ones(VOCABULARY))
    digest = table_digest(table)
    storage.write(table_path(digest), encode_table(table))
    units = []
    for number in range(shards):
        name, keys = f"shard-{number:06d}", [f"{number * SAMPLES + sample:032x}" for sample in range(SAMPLES)]
        payload_bytes = int(rng.integers(mib[0], mib[1] + 1)) * (1 << 20) // SAMPLES
        signals = {}
        for signal, size in (("tokens", payload_bytes // 8), ("logits", payload_bytes)):
            with storage.staged(tar_name(name, signal)) as path, TarWriter(path, signal) as tar:
                for key in keys:
                    tar.add(key, rng.bytes(size))
            signals[signal] = tar.index()
        index = ShardIndex(
            name=name, keys=keys, num_tokens=[512] * SAMPLES, layers=["base"] * SAMPLES, table=digest, signals=signals
        )
        write_mark(storage, index)
        units.append(Unit(name=name, samples=SAMPLES, tokens=512 * SAMPLES, tokens_file=signals["tokens"].file))
    teacher = TeacherInfo(
        name="none", revision=None, dtype="float32", architecture="None", num_layers=1, hidden_size=8,
        vocab_size=VOCABULARY, fingerprint="a" * 64,
    )  # fmt: skip
    plan = Manifest(
        teacher=teacher,
        tokenizer=TokenizerInfo(fingerprint="b" * 64, vocab_size=VOCABULARY),
        corpus=CorpusInfo(
            fingerprint="c" * 64,
            settings=CorpusConfig(sources=[SourceConfig(path="none", format="text")], max_tokens=512),
            counts=CorpusCounts(**dict.fromkeys(CorpusCounts.model_fields, 0)),
        ),
        capture=CaptureConfig(), codec=CodecConfig(), provenance=Provenance(), tokens_per_shard=512 * SAMPLES,
        units=units, complete=False, shards=[], tables={},
        totals=Totals(samples=0, tokens=0, bytes={}, index_bytes=0),
    )  # fmt: skip
    return write_manifest(storage, assemble(storage, plan))


if __name__ == "__main__":
    sys.exit(main())
