"""A plan can only be continued with a tokenizer and template that treat its corpus alike."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import validate
from schemas.manifest import Manifest, TokenizerInfo
from support.models import CHAT_TEMPLATE, write_random_teacher
from support.workspace import cache_tree
from teacher_cache.plan import load_or_make_plan
from teacher_cache.shards.marks import read_manifest, write_manifest
from teacher_cache.shards.storage import Storage


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    teacher = write_random_teacher(tmp_path / "teacher")
    (tmp_path / "chats").mkdir()
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    (tmp_path / "chats" / "data.jsonl").write_text(json.dumps({"messages": messages}))
    tree = cache_tree(teacher, tmp_path / "chats", tmp_path / "cache")
    tree["corpus"] = {"sources": [{"path": str(tmp_path / "chats"), "format": "jsonl"}], "max_tokens": 128}
    return validate(CacheConfig, tree, "test")


def plan(config: CacheConfig) -> Manifest:
    return load_or_make_plan(config, Storage(config.output.path))


def in_json(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))

    return apply


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("chat_template.jinja", lambda path: path.write_text(CHAT_TEMPLATE.replace("user", "human") + " ")),
        ("tokenizer.json", in_json(lambda tree: tree["model"]["merges"].reverse())),
        ("tokenizer.json", in_json(lambda tree: tree.update(normalizer={"type": "NFC"}))),
        ("tokenizer.json", in_json(lambda tree: tree["added_tokens"][1].update(rstrip=True))),
        ("tokenizer_config.json", in_json(lambda tree: tree.update(add_bos_token=True))),
    ],
)
def test_a_changed_file_of_the_tokenizer_is_refused_by_name(config: CacheConfig, name: str, change: Callable) -> None:
    assert plan(config).digest() == plan(config).digest()
    change(Path(config.teacher.path) / name)
    with pytest.raises(UserError, match=rf"made with other settings: .*teacher\.path \(tokenizer\)\.files\.{name}: "):
        plan(config)


def test_a_changed_template_of_ones_own_is_refused_by_name(config: CacheConfig, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(CHAT_TEMPLATE)
    own = config.model_copy(update={"corpus": config.corpus.model_copy(update={"chat_template": str(template)})})
    first = plan(own)
    assert first.corpus.settings.chat_template == "own.jinja"
    (tmp_path / "elsewhere").mkdir()
    moved = template.rename(tmp_path / "elsewhere" / "own.jinja")
    own = own.model_copy(update={"corpus": own.corpus.model_copy(update={"chat_template": str(moved)})})
    assert plan(own).digest() == first.digest()  # its path does not matter
    moved.write_text(CHAT_TEMPLATE + " ")
    with pytest.raises(UserError, match=r"made with other settings: .*\.files\.own\.jinja: "):
        plan(own)
    with pytest.raises(UserError, match=r"corpus\.chat_template: 'own\.jinja' in the cache, None now"):
        plan(config)


def test_a_plan_without_these_fields_is_continued(config: CacheConfig) -> None:
    storage = Storage(config.output.path)
    made = plan(config)
    assert made.tokenizer.files
    assert made.tokenizer.chat_template
    old = TokenizerInfo(fingerprint=made.tokenizer.fingerprint, vocab_size=made.tokenizer.vocab_size)
    assert set(old.model_dump()) == {"fingerprint", "vocab_size"}
    write_manifest(storage, made.model_copy(update={"tokenizer": old}))
    (Path(config.teacher.path) / "chat_template.jinja").write_text("{{ messages }}")
    assert plan(config).tokenizer == read_manifest(storage).tokenizer == old
