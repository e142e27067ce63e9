import json
from pathlib import Path

import pytest

from schemas.cache_config import CacheConfig
from schemas.load import validate
from support.models import tiny_config, tiny_tokenizer, write_random_teacher
from support.workspace import cache_tree
from teacher_cache import job


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's folder without weights."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny_config().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def verifier_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a cache of five dialogues with logits, and all rows of three layers; its teacher is beside it."""
    folder = tmp_path_factory.mktemp("verifier")
    teacher, corpus = write_random_teacher(folder / "teacher", num_hidden_layers=3), folder / "corpus.jsonl"
    turns = [("def f", "return " + n * "x + " + "y") for n in range(1, 6)]
    rows = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in turns]
    corpus.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    hidden = {"layers": [1, 2, 1.0], "positions": "all", "dtype": "bfloat16"}
    capture = {"logits": {"k": 8}, "draws": None, "hidden": hidden}
    tree = cache_tree(teacher, corpus, folder / "cache", tokens_per_shard=60, capture=capture)
    tree["corpus"]["sources"] = [{"path": str(corpus), "format": "jsonl"}]
    job.run(validate(CacheConfig, tree, "test"))
    return str(folder / "cache")
