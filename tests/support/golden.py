"""The golden caches: small shards with every signal, checked in as ``tests/fixtures/format-1``, ``-1.1`` and ``-1.2``.

They are never written again for their format: readers must read them for ever. ``python -m support.golden`` in
``tests`` wrote the last one, with records of chats and a vocabulary, and would write one for a new format version.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np

from schemas.cache_config import CacheConfig
from schemas.load import validate
from schemas.strict import FORMAT_MINOR, FORMAT_VERSION
from teacher_cache import job
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.vocabulary_file import read_vocabulary

SIGNALS = ("tokens", "logits", "draws", "final", "hidden", "attention")
FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDEN = FIXTURES / "format-1"
BUNDLED = FIXTURES / "format-1.1"
WITH_CHATS = FIXTURES / "format-1.2"
EVERY_VERSION = (GOLDEN, BUNDLED, WITH_CHATS)


def main() -> None:
    """Write the golden cache of the present format and what its arrays must be."""
    folder = FIXTURES / f"format-{FORMAT_VERSION}.{FORMAT_MINOR}"
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        job.run(golden_config(Path(place), folder))
    digests = array_digests(folder)
    folder.with_name(f"{folder.name}.json").write_text(json.dumps(digests, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size:,} bytes", file=sys.stderr)


def golden_config(place: Path, output: Path) -> CacheConfig:
    """A tiny teacher's cache of short text (several bytes a character too) and chats."""
    from support.models import write_random_teacher

    texts = place / "texts"
    texts.mkdir()
    for i in range(75):
        (texts / f"{i:03d}.txt").write_text(
            ("Où est l'été ?", "東京", f"def f{i}(x)")[i % 3] + f" {i}", encoding="utf-8"
        )
    chats = [
        {"messages": [{"role": "user", "content": f"{i} + {i}?"}, {"role": "assistant", "content": f"{2 * i}."}]}
        for i in range(4)
    ]
    (place / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    teacher = write_random_teacher(place / "teacher", hidden_size=16, head_dim=8)
    tree = {
        "teacher": {"path": str(teacher), "dtype": "float32"},
        "engine": {"kind": "transformers", "device": "cpu"},
        "corpus": {
            "sources": [
                {"path": str(texts), "format": "text", "pattern": "*.txt"},
                {"path": str(place / "chats.jsonl"), "format": "jsonl", "layer": "chat"},
            ],
            "max_tokens": 96,
        },
        "capture": {
            "logits": {"policy": "top_k", "k": 12},
            "draws": {"n": 6, "temperatures": [1.0, 3.0]},
            "final": {},
            "hidden": {"layers": [1, 2], "positions": {"every": 3}, "dtype": "int4"},
            "attention": {"heads": 2, "keys": 5, "positions": {"every": 4}},
        },
        "output": {"path": str(output), "tokens_per_shard": 1080},
        "provenance": {"licence": "Apache-2.0", "owner": "the tests", "notes": "a golden cache"},
    }
    return validate(CacheConfig, tree, "golden")


def array_digests(folder: Path) -> dict[str, str]:
    """sha256 of every decoded field of all samples of a cache with every signal, by signal and field."""
    reader = CacheReader(str(folder), SIGNALS)
    read = {
        "tokens": reader.read_tokens,
        "logits": reader.read_logits,
        "draws": reader.read_draws,
        "final": reader.read_final,
        "hidden": reader.read_hidden,
        "attention": reader.read_attention,
    }
    hashes: dict[str, hashlib._Hash] = {}
    for position in range(len(reader)):
        for signal in reader.signals:
            sample = read[signal](position)
            for field in fields(sample):
                value = getattr(sample, field.name)
                data = value.tobytes() if isinstance(value, np.ndarray) else str(value).encode()
                hashes.setdefault(f"{signal}.{field.name}", hashlib.sha256()).update(data)
    if not any(reader.read_tokens(position).chat for position in range(len(reader))):
        del hashes["tokens.chat"]  # before format 1.2
    head = reader.read_head()
    if reader.manifest.vocabulary is not None:
        vocabulary = read_vocabulary(Storage(str(folder)), reader.manifest)
        for name, array in {**vocabulary.table._asdict(), **vocabulary._asdict()}.items():
            if name != "table":
                hashes[f"vocabulary.{name}"] = hashlib.sha256(array.tobytes())
    hashes["head.weight"] = hashlib.sha256(head.weight_VD.numpy().tobytes())
    return {name: digest.hexdigest() for name, digest in hashes.items()}


if __name__ == "__main__":
    main()
