"""Memory growth of a long caching run.

``teacher-cache run`` with vLLM, the real teacher and every signal writes many small units. The resident memory of the
job's processes is read at each commit, and the means over the first and last tenth of the units are compared. The first
units already include everything allocated once: buffers, compiled code, threads.
"""

import itertools
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from benchmarks.support.common import FOLDER, settings
from benchmarks.support.results import Row, at_most, exit_status, write_results

UNITS, TOKENS = 200, 256
MAX_GROWTH = 3
POLL_SECONDS = 0.02


def main() -> int:
    """Run the benchmark; returns the exit status."""
    folder = FOLDER / "memory-growth"
    tree = settings(folder, modules=80, characters=4_000, max_tokens=TOKENS)
    tree["output"]["tokens_per_shard"] = TOKENS
    tree["capture"] |= {"draws": {"n": 50}, "hidden": {}, "attention": {}}
    config, cache = folder / "cache.yaml", Path(tree["output"]["path"])
    shutil.rmtree(cache, ignore_errors=True)
    config.write_text(yaml.safe_dump(tree, sort_keys=False))
    resident = list(itertools.islice(resident_at_commits(config, cache), UNITS))
    tenth = UNITS // 10
    first, last = (statistics.mean(part) for part in (resident[:tenth], resident[-tenth:]))
    rows = [
        at_most(f"growth from the first {tenth} units to the last {tenth}", 100 * (last / first - 1), "%", MAX_GROWTH),
        Row("resident memory at the first of them", resident[0] / 2**20, "MiB"),
        Row("… at the last", resident[-1] / 2**20, "MiB"),
        Row("… at most", max(resident) / 2**20, "MiB"),
    ]
    raw = {"resident_bytes": resident, "tokens_per_unit": TOKENS}
    title = f"Memory of a caching run: SmolLM2-135M in vLLM, every signal, {len(resident)} units of {TOKENS} tokens"
    write_results("memory_growth", title, rows, raw)
    return exit_status(rows)


def resident_at_commits(config: Path, cache: Path) -> Iterator[int]:
    """Resident bytes of a job's processes at each new commit mark. Closing the generator stops the job.

    Exits this process with a message when the job ends first.
    """
    command = str(Path(sys.executable).parent / "teacher-cache")
    process = subprocess.Popen([command, "run", str(config)], stdout=subprocess.DEVNULL)
    committed = 0
    try:
        while process.poll() is None:
            found = len(list(cache.glob("shard-*.json")))
            if found > committed:
                committed = found
                yield resident_bytes(psutil.Process(process.pid))
            time.sleep(POLL_SECONDS)
        sys.exit(f"error: teacher-cache ended with status {process.returncode} after {committed} units")
    finally:
        process.terminate()
        process.wait()


def resident_bytes(process: psutil.Process) -> int:
    """Resident bytes of a process and its descendants."""
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


if __name__ == "__main__":
    sys.exit(main())
