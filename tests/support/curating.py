"""A small corpus of documents, chats and generated replies, and configurations of its curation."""

import json
import random
from pathlib import Path
from typing import Any

from schemas.curate_config import CurateConfig
from schemas.load import validate
from support.models import tiny_tokenizer
from teacher_cache.curated.curated_place import CuratedRow, read_curated, removed_rows, rows_of
from teacher_cache.shards.storage import Storage

WORDS = [f"word{number}" for number in range(400)]
STEPS: list[dict[str, Any]] = [
    {"step": "length", "min_tokens": 20, "max_tokens": 400},
    {"step": "deduplicate"},
    {"step": "broken_text"},
    {"step": "mix", "shares": {"base": 60, "code": 40}, "on_deficit": "shrink"},
]


def write_curation_input(folder: Path, count: int = 120) -> None:
    """``texts.jsonl``, ``chats.jsonl`` and a tokenizer; some records are empty, short, copies of others, or broken."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    rng = random.Random(0)
    texts: list[str] = []
    for number in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(20, 60)))
        if number % 8 == 5:
            text = texts[rng.randrange(number)] + " more"
        elif number % 20 == 7:
            text = ["", "too short", texts[1], "It was a cafÃ© in MontrÃ©al, " + text][number // 20 % 4]
        texts.append(text)
    chats = [_chat(rng.choice(WORDS), " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))) for _ in range(count // 2)]
    pairs = [{"prompt": "Say it: ", "completion": " ".join(rng.choices(WORDS, k=30))} for _ in range(count // 8)]
    _write(folder / "texts.jsonl", [{"text": text} for text in texts] + pairs)
    _write(folder / "chats.jsonl", chats)


def _chat(asked: str, said: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"{asked}?"}, {"role": "assistant", "content": said}]}


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def curate_tree(folder: Path, place: str, **changes: Any) -> dict[str, Any]:
    """A configuration over the corpus in ``folder``."""
    sources = [{"path": str(folder / "texts.jsonl")}, {"path": str(folder / "chats.jsonl"), "layer": "code"}]
    return {
        "input": {"sources": sources},
        "tokenizer": {"path": str(folder / "tokenizer")},
        "steps": STEPS,
        "output": {"path": place, "records_per_shard": 16},
        **changes,
    }


def curate_config(folder: Path, place: str, **changes: Any) -> CurateConfig:
    """The same as a model."""
    return validate(CurateConfig, curate_tree(folder, place, **changes), "test")


def kept_and_removed(place: str) -> tuple[list[CuratedRow], list[CuratedRow]]:
    """All records of a curated corpus, and all that left."""
    storage = Storage(place)
    manifest = read_curated(storage)
    return list(rows_of(storage, manifest.shards)), list(removed_rows(storage, manifest.removed))
