"""Fixtures shared by benchmarks: the real teacher, real token sequences, and one cache of them.

The first benchmark that needs the cache writes it with ``teacher-cache run``; it is kept in ``runs/bench`` until its
settings change. Everything computes in float32, because processors without bf16 instructions run bf16 several times
slower.
"""

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import yaml

from benchmarks.real_teacher import make_teacher
from benchmarks.support.corpus import standard_library, write_code
from benchmarks.support.installed import run_installed
from schemas.cache_config import CacheConfig
from schemas.load import validate
from teacher_cache import job
from teacher_cache.shards.reader import CacheReader

FOLDER = Path("runs/bench")
K = 64
TEMPERATURES = [1.0, 3.0]
Result = TypeVar("Result")


def settings(folder: Path, modules: int, characters: int, max_tokens: int, **engine: Any) -> dict[str, Any]:
    """A cache configuration over the beginnings of ``modules`` standard library modules; sequences of ``max_tokens``.

    Writes the modules below ``folder``; the output is ``folder/cache``.
    """
    files = [path for path in standard_library() if path.stat().st_size >= characters][:modules]
    shutil.rmtree(folder / "corpus", ignore_errors=True)
    write_code(folder / "corpus", files, characters)
    return {
        "teacher": {"path": str(make_teacher()), "dtype": "float32"},
        "engine": {"kind": "vllm", **engine},
        "corpus": {
            "sources": [{"path": str(folder / "corpus"), "format": "text", "pattern": "*.py", "layer": "code"}],
            "max_tokens": max_tokens,
            "min_tokens": max_tokens,
        },
        "capture": {"logits": {"k": K, "temperatures": TEMPERATURES}, "draws": None},
        "output": {"path": str(folder / "cache"), "tokens_per_shard": 16_384},
        "provenance": {"notes": f"the first {characters} characters of {modules} modules"},
    }


def as_config(tree: dict[str, Any]) -> CacheConfig:
    """``tree`` as a validated configuration."""
    return validate(CacheConfig, tree, where="benchmark")


def cached(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """Write the cache configured by ``tree`` unless it exists; returns the summary of the run that wrote it."""
    text = yaml.safe_dump(tree, sort_keys=False)
    summary, config = folder / "summary.json", folder / "cache.yaml"
    if summary.exists() and config.exists() and config.read_text() == text:
        return json.loads(summary.read_text())
    summary.unlink(missing_ok=True)
    shutil.rmtree(tree["output"]["path"], ignore_errors=True)
    config.write_text(text)
    finished = run_installed("teacher-cache", "run", config, "--json")
    summary.write_text(json.dumps(finished.json, indent=1))
    return finished.json


def shared_cache() -> tuple[Path, dict[str, Any]]:
    """The shared cache, some 30 sequences of 2,048 tokens, and the summary of its run."""
    folder = FOLDER / "shared"
    tree = shared_settings(folder)
    return Path(tree["output"]["path"]), cached(folder, tree)


def shared_settings(folder: Path) -> dict[str, Any]:
    """The shared cache's configuration, for a cache in ``folder``."""
    return settings(folder, modules=16, characters=18_000, max_tokens=2048)


def sequences_of(reader: CacheReader, limit: int) -> list[np.ndarray]:
    """The token ids (int64 [S]) of the first ``limit`` samples."""
    return [reader.read_tokens(i).input_ids.astype(np.int64) for i in range(min(limit, len(reader)))]


def digest(arrays: list[np.ndarray]) -> str:
    """A short digest of the measured sequences, to tell whether two results are comparable."""
    return hashlib.sha256(b"".join(array.astype("<i8").tobytes() for array in arrays)).hexdigest()[:16]


def captured(engine: Any, config: CacheConfig) -> job.Summary:
    """Run a whole job with a loaded engine; its seconds span from reading a unit to the last commit mark."""
    shutil.rmtree(config.output.path, ignore_errors=True)
    with mock.patch.object(job, "open_engine", return_value=nullcontext(engine)):
        return job.run(config)


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call ``function`` in a fresh process, which ends afterwards."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
