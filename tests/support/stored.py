"""A training run's output in the S3 server, as a reader finds it."""

import hashlib
import json
from typing import Any

import fsspec

from schemas.train_config import TrainConfig


def stored_at(config: TrainConfig, url: str, scratch: object, **loop: Any) -> TrainConfig:
    """The same run with its output in a store, worked on in the folder ``scratch``."""
    changed = config.loop.model_copy(update={**loop, "scratch": str(scratch)})
    return config.model_copy(update={"output": url, "loop": changed})


def complete_checkpoints(url: str) -> list[int]:
    """Steps of the checkpoints that have a mark; each must be whole: every file as the mark lists it."""
    store = fsspec.filesystem("s3")
    store.invalidate_cache()
    steps = []
    for path in store.glob(f"{url}/checkpoint-*/checkpoint.json"):
        try:
            mark = json.loads(store.cat_file(path))
        except FileNotFoundError:  # removed meanwhile
            continue
        folder = path.rpartition("/")[0]
        for name, entry in mark["files"].items():
            content = store.cat_file(f"{folder}/{name}")
            found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            assert found == entry, f"{folder}/{name}"
        steps.append(int(mark["step"]))
    return sorted(steps)


def stored_losses(url: str) -> dict[int, float]:
    """The loss of each step."""
    lines = fsspec.filesystem("s3").cat_file(f"{url}/metrics.jsonl").decode().splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    assert len({record["step"] for record in records}) == len(records), "each step once"
    return {record["step"]: record["loss"] for record in records}
