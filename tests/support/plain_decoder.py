"""A cache decoded with numpy, pyarrow, webdataset and zstandard alone, from the description of the format.

Nothing of this project is imported: it shows what another team needs in order to read our files.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import webdataset as wds
import zstandard


def read_samples(folder: Path) -> dict[str, dict[str, Any]]:
    """Every sample of a complete cache by key: the columns of its tokens, and its logits as arrays."""
    manifest = json.loads((folder / "manifest.json").read_text())
    samples: dict[str, dict[str, Any]] = {}
    for shard in manifest["shards"]:
        index = json.loads((folder / f"{shard['name']}.json").read_text())
        plain = zstandard.decompress((folder / "tables" / f"{index['table']}.zst").read_bytes())
        table = np.frombuffer(plain, "<u4")
        for key, payload in _members(folder / f"{shard['name']}.tokens.tar", "tokens.arrow"):
            samples[key] = _row(payload)
        for key, payload in _members(folder / f"{shard['name']}.logits.tar", "logits.arrow"):
            num_tokens = len(samples[key]["input_ids"])
            samples[key] |= _logits(_row(payload), num_tokens, table, manifest)
    return samples


def _members(tar: Path, extension: str) -> list[tuple[str, bytes]]:
    dataset = wds.WebDataset(str(tar), shardshuffle=False, empty_check=False)
    return [(sample["__key__"], sample[extension]) for sample in dataset]


def _row(payload: bytes) -> dict[str, Any]:
    return pa.ipc.open_stream(payload).read_all().to_pylist()[0]


def _integers(frames: list[bytes]) -> np.ndarray:
    planes = [np.frombuffer(zstandard.decompress(frame), np.uint8).astype(np.int64) for frame in frames]
    return sum(plane << (8 * place) for place, plane in enumerate(planes))


def _logits(row: dict[str, Any], num_tokens: int, table: np.ndarray, manifest: dict[str, Any]) -> dict[str, Any]:
    capture, codec = manifest["capture"]["logits"], manifest["codec"]
    k = capture["k"]
    counts = _integers(row["counts"]) if row["counts"] else np.full(num_tokens, k)
    stored = np.arange(k) < counts[:, None]
    ids = np.zeros((num_tokens, k), np.int64)
    ids[stored] = table[_integers(row["ids"])]  # row by row
    differences = np.zeros((k, num_tokens), np.int64)
    differences[stored.T] = _integers(row["logprobs"])  # column by column
    steps = np.cumsum(differences, axis=0).T
    scalars = _integers(row["scalars"]).astype(np.uint32).view(np.int32) / codec["scalar_steps_per_nat"]
    scalars = scalars.reshape(1 + len(capture["temperatures"]), num_tokens)
    return {
        "counts": counts,
        "ids": ids,
        "logprobs": np.where(stored, -steps / codec["logprob_steps_per_nat"], -np.inf),
        "next_logprob": scalars[0, :-1],
        "log_partition": scalars[1:].T,
    }
