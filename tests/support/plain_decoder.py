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


def _integers(planes: np.ndarray, n_planes: int) -> np.ndarray:
    """Unsigned integers from their byte planes, lowest first, which stand one after the other."""
    places = 8 * np.arange(n_planes)[:, None]
    return (planes.reshape(n_planes, -1).astype(np.int64) << places).sum(axis=0)


def _logits(row: dict[str, Any], num_tokens: int, table: np.ndarray, manifest: dict[str, Any]) -> dict[str, Any]:
    capture, codec = manifest["capture"]["logits"], manifest["codec"]
    k = capture["k"]
    sections = np.frombuffer(zstandard.decompress(row["frame"]), np.uint8)
    counts, ids, packed, excesses, scalars = np.split(sections, np.cumsum(row["sizes"])[:-1])
    counts = _integers(counts, 2) if len(counts) else np.full(num_tokens, k)
    stored = np.arange(k) < counts[:, None]
    codes = np.zeros((num_tokens, k), np.int64)
    codes[stored] = _integers(ids, 2 if len(table) <= 1 << 16 else 3)  # row by row
    differences = np.zeros((num_tokens, k), np.int64)
    two_bits = packed[:, None] >> [0, 2, 4, 6] & 3  # four a byte, the first lowest
    bytes_of_rows = np.split(two_bits, np.cumsum((counts + 3) // 4)[:-1])  # every row starts a new byte
    for difference, bytes_of_row, count in zip(differences, bytes_of_rows, counts, strict=True):
        difference[:count] = bytes_of_row.reshape(-1)[:count]
    large = differences == 3  # and how much larger
    differences[large] += _integers(excesses, max(1, len(excesses) // max(1, large.sum())))
    scalars = _integers(scalars, 4).astype(np.uint32).view(np.int32) / codec["scalar_steps_per_nat"]
    scalars = scalars.reshape(1 + len(capture["temperatures"]), num_tokens)
    return {
        "counts": counts,
        "ids": np.where(stored, table[codes], 0),
        "logprobs": np.where(stored, -np.cumsum(differences, axis=1) / codec["logprob_steps_per_nat"], -np.inf),
        "next_logprob": scalars[0, :-1],
        "log_partition": scalars[1:].T,
    }
