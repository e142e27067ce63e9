"""Data stalls in training when the cache lies in an object store.

The same run twice, with the installed command: from a folder, and from an S3 server (moto, in its own process on this
machine) through prefetched local copies limited to a quarter of the cache. The student is two of the real teacher's
layers, so a step is several times shorter than the demo's and waiting a larger share of it. Losses must be equal.
``data_wait`` is the training loop's own measurement; the first batch, which cannot be prefetched, is reported
separately.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import FOLDER, cached, settings
from benchmarks.support.installed import run_installed
from benchmarks.support.results import Row, at_most, exit_status, write_results
from tests.support.s3_server import s3_server
from tests.support.watch import Watch

LAYERS = [0, 29]
STEPS = 40
MAX_TOKENS = 512
TOKENS_PER_SHARD = 1024  # two sequences
MAX_SHARE = 5.0


def main() -> int:
    """Run the benchmark; returns the exit status."""
    folder = FOLDER / "remote"
    tree = settings(folder, modules=60, characters=2_200, max_tokens=MAX_TOKENS)
    tree["output"]["tokens_per_shard"] = TOKENS_PER_SHARD
    cached(folder, tree)
    cache, copies = Path(tree["output"]["path"]), folder / "copies"
    total = sum(path.stat().st_size for path in cache.glob("*.tar"))
    disk = train(folder / "disk", str(cache), None)
    shutil.rmtree(copies, ignore_errors=True)
    with s3_server() as server, Watch(copies) as watch:
        url = server.upload(cache, "cache")
        s3 = train(folder / "s3", url, {"folder": str(copies), "max_gib": total / 4 / 2**30})
    difference = max(abs(one["loss"] - two["loss"]) for one, two in zip(disk, s3, strict=True))
    rows = [
        at_most("data_wait from S3, of the time of all steps after the first", share(s3), "%", MAX_SHARE),
        Row("… from a folder", share(disk), "%"),
        Row("the first batch from S3 · from a folder", f"{s3[0]['data_wait']:.2f} · {disk[0]['data_wait']:.2f}", "s"),
        Row("a step", sum(line["step_seconds"] for line in s3[1:]) / (STEPS - 1), "s"),
        at_most("largest difference of a step's loss from the folder's", difference, "", 0),
        at_most("local copies at their largest ÷ their bound", watch.most_bytes / (total // 4), "×", 1),
    ]
    names = ("loss", "data_wait", "step_seconds")
    raw = {
        "steps": STEPS,
        "shards": len(list(cache.glob("shard-*.json"))),
        "bytes_of_all_tars": total,
        "largest_bytes_of_copies": watch.most_bytes,
        "looks_at_the_copies": watch.looks,
        "s3": {name: [line[name] for line in s3] for name in names},
        "folder": {name: [line[name] for line in disk] for name in names},
    }
    title = f"Streaming from S3: {STEPS} steps of {MAX_TOKENS} tokens, 35 M parameters"
    write_results("remote", title, rows, raw)
    return exit_status(rows)


def share(lines: list[dict[str, Any]]) -> float:
    """Percentage of step time spent waiting for data, without the first step."""
    return 100 * sum(line["data_wait"] for line in lines[1:]) / sum(line["step_seconds"] for line in lines[1:])


def train(output: Path, cache: str, local_copies: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Run a whole training; returns its metrics, one dictionary per step."""
    shutil.rmtree(output, ignore_errors=True)
    tree = {
        "data": {"cache": cache, "shards_mixed": 4, "local_copies": local_copies},
        "student": {"teacher": str(make_teacher()), "from_layers": LAYERS, "dtype": "float32"},
        "loop": {"max_steps": STEPS, "micro_batch_size": 1, "save_every": 10 * STEPS},
        "output": str(output),
    }
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(tree, sort_keys=False))
    run_installed("train-student", "run", config, "--json")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "data_wait" in line]


if __name__ == "__main__":
    sys.exit(main())
