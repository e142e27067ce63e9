"""Memory of a curation's decisions over ten million records: near duplicates, and the mix.

Sketches of random bits lie in a file, a tenth of them copies. What is measured is the peak of a process that decides
over them; the rest of a curation handles a chunk at a time.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.support.common import FOLDER, in_own_process
from benchmarks.support.results import Row, at_most, exit_status, write_results
from schemas.curate_steps import MixStep
from teacher_cache.curation.curation_step import StepPlace, Table
from teacher_cache.curation.deduplicate import HASHES, TEXT_HASH, near_duplicates
from teacher_cache.curation.mix_shares import Mix
from teacher_cache.curation.stages import TABLE
from teacher_cache.process import peak_memory_bytes

RECORDS, PART, COPIED = 10_000_000, 100_000, 10
LAYERS = ("base", "code", "reasoning")
MAX_GIB = 2


def main() -> int:
    """Run the benchmark; returns the exit status."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=FOLDER) as folder:
        left, seconds, base, peak = in_own_process(deduplicated, folder)
        mix_seconds, mix_base, mix_peak = in_own_process(mixed, folder)
    rows = [
        at_most(f"near duplicates of {RECORDS:,} sketches: peak memory", peak / 2**30, "GiB", MAX_GIB),
        Row("… above what the process had before, by record", (peak - base) / RECORDS, "bytes"),
        Row("… time", seconds, "s"),
        Row(f"… found, of {RECORDS // COPIED:,} copies", left, "records"),
        at_most(f"mix of {RECORDS:,} records: peak memory", mix_peak / 2**30, "GiB", MAX_GIB),
        Row("… above what the process had before, by record", (mix_peak - mix_base) / RECORDS, "bytes"),
        Row("… time", mix_seconds, "s"),
    ]
    raw = {"records": RECORDS, "peak_bytes": peak, "base_bytes": base, "mix_peak_bytes": mix_peak}
    write_results("curation_memory", "Decisions of a curation over ten million records", rows, raw)
    return exit_status(rows)


def deduplicated(folder: str) -> tuple[int, float, int, int]:
    """Records that leave, seconds, and the peak of memory before and after."""
    path, width = Path(folder) / "sketches", TEXT_HASH + HASHES
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(RECORDS // PART):
            sketch_N = rng.integers(0, 1 << 32, (PART, width), np.uint32)
            sketch_N[-PART // COPIED :] = sketch_N[: PART // COPIED]
            sketch_N.tofile(file)
    near_duplicates(sketch_N[:1000], 0.72)  # compiled
    del sketch_N
    base, started = peak_memory_bytes(), time.perf_counter()
    mapped = np.memmap(path, np.uint32, "r", shape=(RECORDS, width))
    code_N, _ = near_duplicates(mapped, 0.72, folder)
    return int(np.count_nonzero(code_N)), time.perf_counter() - started, base, peak_memory_bytes()


def mixed(folder: str) -> tuple[float, int, int]:
    """Seconds, and the peak of memory before and after."""
    rng = np.random.default_rng(0)
    table, numbers = Path(folder) / "table", Path(folder) / "numbers"
    with table.open("wb") as file, numbers.open("wb") as other:
        for _ in range(RECORDS // PART):
            rows = np.zeros(PART, TABLE)
            rows["layer"], rows["n_tokens"] = rng.integers(0, len(LAYERS), PART), rng.integers(1, 500, PART)
            rows.tofile(file)
            rng.integers(0, 1 << 64, PART, np.uint64).tofile(other)
    settings = MixStep(step="mix", shares={"base": 60, "code": 25, "reasoning": 15}, on_deficit="shrink")
    step = Mix(settings, StepPlace("steps.0", "", LAYERS))
    base, started = peak_memory_bytes(), time.perf_counter()
    rows = np.memmap(table, TABLE, "r")
    columns = Table(rows["number"], rows["source"], rows["layer"], rows["n_tokens"], LAYERS)
    step.decide(np.memmap(numbers, np.uint64, "r"), columns)
    return time.perf_counter() - started, base, peak_memory_bytes()


if __name__ == "__main__":
    sys.exit(main())
