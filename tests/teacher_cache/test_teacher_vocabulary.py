"""The teacher's vocabulary: the bytes of its tokens, and where it stops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GenerationConfig

from schemas.cache_config import CorpusConfig, SourceConfig, TeacherConfig
from schemas.errors import CorruptCacheError
from support.models import tiny_tokenizer, write_random_teacher
from support.synthetic import random_shards, synthetic_vocabulary, write_cache
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.sections import write_payload
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage, file_entry
from teacher_cache.shards.vocabulary_file import read_vocabulary, write_vocabulary
from teacher_cache.teacher_vocabulary import end_of_turn, teacher_vocabulary
from teacher_cache.token_table import TokenTable, Vocabulary
from tools.checking.verify import verify

CORPUS = CorpusConfig(sources=[SourceConfig(path="unused")])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_teacher(tmp_path_factory.mktemp("teacher") / "model")


def of(folder: Path) -> tuple[Vocabulary, Any]:
    tokenizer = tiny_tokenizer()
    return teacher_vocabulary(TeacherConfig(path=str(folder)), CORPUS, tokenizer), tokenizer


def test_the_bytes_of_tokens_spell_any_text(teacher: Path) -> None:
    vocabulary, tokenizer = of(teacher)
    text = "def f(x): 漢字 😀\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(vocabulary.table.token(i) for i in ids) == text.encode()
    assert not vocabulary.is_special_V[ids].any()


def test_it_stops_at_its_end_of_text_and_at_its_end_of_turn(teacher: Path) -> None:
    vocabulary, tokenizer = of(teacher)
    stops = tokenizer.convert_ids_to_tokens(np.flatnonzero(vocabulary.is_stop_V).tolist())
    assert stops == ["<|endoftext|>", "<|im_end|>"]  # of the tokenizer, and of its chat template
    special = tokenizer.convert_ids_to_tokens(np.flatnonzero(vocabulary.is_special_V).tolist())
    assert special == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    text = vocabulary.as_text()
    assert (text.length_V[vocabulary.is_special_V] == 0).all()
    assert (text.length_V > 0).sum() == (~vocabulary.is_special_V).sum()


def test_stop_tokens_of_the_generation_settings_count(tmp_path: Path) -> None:
    folder = write_random_teacher(tmp_path / "model")
    GenerationConfig(eos_token_id=[5, 7]).save_pretrained(folder)
    vocabulary, _ = of(folder)
    assert vocabulary.is_stop_V[[5, 7]].all()


@pytest.mark.parametrize(
    "template", [None, "{{ raise_exception('no') }}", "{% for m in messages %}{{ m.content }}\n{% endfor %}"]
)
def test_a_template_without_an_end_of_turn_gives_none(template: str | None) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer, CORPUS) == []


def test_the_first_token_after_a_reply_comes_first() -> None:
    """It is what ends a turn; the lowest id may be another."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}<|endoftext|>"
    assert end_of_turn(tokenizer, CORPUS) == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = write_cache(str(tmp_path / "cache"), random_shards([[5, 6]]))
    found, wanted = read_vocabulary(Storage(str(tmp_path / "cache")), manifest), synthetic_vocabulary(300)
    for given, expected in zip((*found.table, *found[1:]), (*wanted.table, *wanted[1:]), strict=True):
        np.testing.assert_array_equal(given, expected)


def test_ids_after_the_tokenizers_last_have_no_bytes(tmp_path: Path) -> None:
    """An embedding is often padded; rows then hold ids that stand for no token."""
    url = str(tmp_path / "cache")
    manifest = write_cache(url, random_shards([[5, 6]]))
    padded = manifest.model_copy(update={"teacher": manifest.teacher.model_copy(update={"vocab_size": 320})})
    found, wanted = read_vocabulary(Storage(url), padded), synthetic_vocabulary(300)
    assert [found.table.token(i) for i in range(320)] == [wanted.table.token(i) for i in range(300)] + [b""] * 20
    assert len(found.is_stop_V) == len(found.is_special_V) == 320
    assert not found.is_stop_V[300:].any()


def payload(lengths: list[int], kinds: list[int], data: bytes) -> bytes:
    parts = [split_planes(np.array(lengths), 2), np.array([kinds], np.uint8), np.frombuffer(data, np.uint8)[None]]
    return write_payload(parts, 3)


SIZE = 300
WRONG = {
    "other bytes": b"x",
    "fewer tokens": payload([1] * (SIZE - 1), [0] * SIZE, b"a" * (SIZE - 1)),
    "more bytes than tokens have": payload([1] * SIZE, [0] * SIZE, b"a" * (SIZE + 1)),
    "unknown kinds": payload([1] * SIZE, [4] * SIZE, b"a" * SIZE),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("listed", [True, False])
def test_a_wrong_file_is_refused_and_found(tmp_path: Path, data: bytes, listed: bool) -> None:
    """Also where the manifest lists it: a cache is made by others."""
    url = str(tmp_path / "cache")
    storage, manifest = Storage(url), write_cache(url, random_shards([[5, 6]]))
    (tmp_path / "cache/vocabulary.arrow").write_bytes(data)
    if listed:
        manifest = manifest.model_copy(update={"vocabulary": file_entry(data), "sha256": ""}).sealed()
        storage.write("manifest.json", manifest.to_json().encode())
    with pytest.raises(CorruptCacheError, match=r"vocabulary\.arrow"):
        read_vocabulary(storage, read_manifest(storage))
    assert any("vocabulary.arrow" in problem for problem in verify(url).problems)


def test_a_token_too_long_for_the_file_has_no_bytes(tmp_path: Path) -> None:
    url = str(tmp_path / "cache")
    storage, manifest = Storage(url), write_cache(url, random_shards([[5, 6]]))
    none = np.zeros(SIZE, bool)
    entry = write_vocabulary(Vocabulary(TokenTable.of([b"x" * 70_000, *[b"y"] * (SIZE - 1)]), none, none), storage)
    found = read_vocabulary(storage, manifest.model_copy(update={"vocabulary": entry}))
    assert [found.table.token(i) for i in range(2)] == [b"", b"y"]


def test_a_manifest_without_one_says_so_and_is_written_as_before(tmp_path: Path) -> None:
    url = str(tmp_path / "cache")
    manifest = write_cache(url, random_shards([[5, 6]]), digests=False)
    assert "vocabulary" not in json.loads((tmp_path / "cache/manifest.json").read_text())
    with pytest.raises(CorruptCacheError, match="not listed in the manifest"):
        read_vocabulary(Storage(url), manifest)
