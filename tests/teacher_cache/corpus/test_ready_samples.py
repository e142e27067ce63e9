"""A cache of generated replies holds exactly the ids that were generated."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.cache_config import CacheConfig
from schemas.chat_record import ChatRecord
from schemas.errors import CorruptCacheError, UserError
from schemas.load import validate
from support.models import tiny_tokenizer, write_random_teacher
from support.other_tokenizers import other_tokenizer
from support.talking import generate_config, spelled, write_prompts, write_talking_generator
from teacher_cache import job
from teacher_cache.generated.generated_place import read_generated, replies_of
from teacher_cache.generated.reply_files import Prompt, Reply
from teacher_cache.generation.generation_job import generate
from teacher_cache.preview import preview
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage

TOKENIZER = tiny_tokenizer()
BYTES = [spelled(TOKENIZER, token) for token in range(len(TOKENIZER))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, replies by another model with its tokenizer, and a text beside them."""
    folder = tmp_path_factory.mktemp("ready")
    write_talking_generator(folder / "generator")
    write_random_teacher(folder / "teacher")
    write_prompts(folder / "prompts.jsonl")
    generate(generate_config(folder / "generator", folder / "prompts.jsonl", folder / "replies"))
    (folder / "texts.jsonl").write_text(json.dumps({"text": "def f1(x): return x + 1"}) + "\n")
    return folder


def cache_config(folder: Path, cache: Path, replies: Path, **changes: Any) -> CacheConfig:
    sources = [{"path": str(folder / "texts.jsonl")}, {"path": str(replies), "format": "generated"}]
    tree: dict[str, Any] = {
        "teacher": {"path": str(folder / "teacher"), "dtype": "float32"},
        "engine": {"kind": "transformers", "device": "cpu"},
        "corpus": {"sources": sources, "max_tokens": 128, "deduplicate": False},
        "capture": {"logits": {"k": 4}},
        "output": {"path": str(cache), "tokens_per_shard": 1000},
    }
    return validate(CacheConfig, {**tree, **{key: {**tree[key], **part} for key, part in changes.items()}}, "test")


@pytest.fixture(scope="module")
def cache(folder: Path) -> CacheReader:
    job.run(cache_config(folder, folder / "cache", folder / "replies"))
    return CacheReader(str(folder / "cache"), ("tokens", "logits"))


def replies(place: Path) -> dict[str, tuple[Prompt, Reply]]:
    storage = Storage(str(place))
    found = replies_of(storage, read_generated(storage))
    return {f"{prompt.source_id}/{reply.sample}": (prompt, reply) for prompt, reply in found}


def test_every_accepted_reply_is_captured_with_the_ids_that_were_generated(folder: Path, cache: CacheReader) -> None:
    generated = replies(folder / "replies")
    accepted = {name for name, (_, reply) in generated.items() if not reply.reason}
    captured = {sample.source_id: sample for sample in map(cache.read_tokens, range(len(cache)))}
    assert captured.pop("texts.jsonl#1").loss_mask.sum() > 5
    assert {*captured} == accepted
    assert len(accepted) > 20
    split = 0
    for name, sample in captured.items():
        prompt, reply = generated[name]
        ids = [*prompt.prompt_ids.tolist(), *reply.reply_ids.tolist()]
        assert sample.input_ids.tolist() == ids
        data = sample.text.encode()
        assert sample.text == prompt.prompt + reply.reply + "<|im_end|>"
        for token, start, end in zip(ids, sample.byte_start.tolist(), sample.byte_end.tolist(), strict=True):
            assert data[start:end] == BYTES[token]
        learned = np.flatnonzero(sample.loss_mask) + 1
        assert learned.tolist() == list(range(len(prompt.prompt_ids), len(ids))), "the whole reply, with its end"
        split += any(BYTES[token] == b"\xf0" for token in reply.reply_ids)
        record = ChatRecord.model_validate_json(sample.chat)
        asked = ChatRecord.model_validate_json(prompt.chat).messages
        restored = [message.restored(data) for message in record.messages]
        assert restored[:-1] == [message.restored(prompt.prompt.encode()) for message in asked]
        assert restored[-1] == {"role": "assistant", "content": reply.reply}
        assert [message.learned for message in record.messages] == [False] * len(asked) + [True]
        assert record.messages[-1].closed
    assert split > 5, "replies with an emoji of four tokens"


def test_tokenizing_the_text_again_would_give_other_ids(folder: Path, cache: CacheReader) -> None:
    """Otherwise the test above would show nothing."""
    captured = [cache.read_tokens(position) for position in range(len(cache))]
    assert any(TOKENIZER(sample.text)["input_ids"] != sample.input_ids.tolist() for sample in captured)


def test_rejected_replies_are_counted_and_not_there(folder: Path, cache: CacheReader) -> None:
    generated = replies(folder / "replies")
    reasons = [reply.reason for _, reply in generated.values()]
    counts = cache.manifest.corpus.counts
    assert counts.documents == 1 + len(reasons)
    assert counts.rejected == sum(map(bool, reasons)) > 10
    assert counts.samples == 1 + reasons.count("")
    assert counts.duplicates == counts.dropped_over_long == counts.too_short == 0
    ends = {sample.input_ids[-1] for sample in map(cache.read_tokens, range(len(cache))) if sample.chat}
    assert ends == {TOKENIZER.convert_tokens_to_ids("<|im_end|>")}


def test_equal_replies_and_long_ones_are_dropped_whole(folder: Path, tmp_path: Path) -> None:
    lengths = [
        len(prompt.prompt_ids) + len(reply.reply_ids)
        for prompt, reply in replies(folder / "replies").values()
        if not reply.reason
    ]
    limit = int(np.median(lengths))
    settings = cache_config(
        folder, tmp_path / "cache", folder / "replies", corpus={"max_tokens": limit, "deduplicate": True}
    )
    job.run(settings)
    cache = CacheReader(str(tmp_path / "cache"), ("tokens",))
    counts = cache.manifest.corpus.counts
    assert counts.dropped_over_long == sum(length > limit for length in lengths) > 0
    assert counts.truncated == 0
    assert counts.samples == 1 + sum(length <= limit for length in lengths) - counts.duplicates
    tails = {int(sample.input_ids[-1]) for sample in map(cache.read_tokens, range(len(cache))) if sample.chat}
    assert tails == {TOKENIZER.convert_tokens_to_ids("<|im_end|>")}


def test_continued_texts_are_no_chats(folder: Path, tmp_path: Path) -> None:
    settings = generate_config(
        folder / "generator", folder / "texts.jsonl", tmp_path / "replies",
        prompts={"text": "continue"}, sampling={"samples": 40}, output={"replies_per_shard": 40},
    )  # fmt: skip
    generate(settings)
    job.run(cache_config(folder, tmp_path / "cache", tmp_path / "replies"))
    cache = CacheReader(str(tmp_path / "cache"), ("tokens",))
    found = [sample for sample in map(cache.read_tokens, range(len(cache))) if "/" in sample.source_id]
    assert found
    assert all(sample.chat == b"" and sample.text.startswith("def f1(x): return x + 1") for sample in found)


def test_preview_shows_replies(folder: Path) -> None:
    found = preview(cache_config(folder, folder / "unused", folder / "replies"), 3)
    assert [source.problem for source in found.sources] == [None, None]
    assert found.sources[1].counts["rejected"] > 10


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    shutil.copy(folder / "texts.jsonl", tmp_path)
    other_tokenizer().save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"corpus\.sources\.1\.path: .*generated with another tokenizer"):
        job.run(cache_config(tmp_path, tmp_path / "cache", folder / "replies"))


def test_a_place_without_replies_or_with_some_missing_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"generated\.json: not found; pass a folder or URL that teacher-cache generate"
    ):
        job.run(cache_config(folder, tmp_path / "cache", tmp_path / "nothing"))
    part = tmp_path / "part"
    settings = generate_config(folder / "generator", folder / "prompts.jsonl", part)
    generate(settings, job.Worker(0, 2))
    with pytest.raises(
        UserError, match=r"corpus\.sources\.1\.path: .*: 4 of 8 units are generated; run teacher-cache g"
    ):
        job.run(cache_config(folder, tmp_path / "cache", part))


@pytest.mark.parametrize("name", ["shard-000002.replies.zst", "shard-000002.prompts.zst", "generated.json"])
def test_a_changed_file_is_damage(folder: Path, tmp_path: Path, name: str) -> None:
    place = Path(shutil.copytree(folder / "replies", tmp_path / "replies"))
    data = bytearray((place / name).read_bytes())
    data[len(data) // 2] ^= 1
    (place / name).write_bytes(data)
    with pytest.raises(CorruptCacheError, match=name):
        job.run(cache_config(folder, tmp_path / "cache", place))


def test_a_cache_is_continued_only_with_the_same_replies(folder: Path, tmp_path: Path) -> None:
    job.run(cache_config(folder, tmp_path / "cache", folder / "replies"))
    settings = generate_config(folder / "generator", folder / "prompts.jsonl", tmp_path / "replies", seed=1)
    generate(settings)
    with pytest.raises(UserError, match=r"corpus\.sources \(content\)"):
        job.run(cache_config(folder, tmp_path / "cache", tmp_path / "replies"))
    moved = Path(shutil.copytree(folder / "replies", tmp_path / "moved/replies"))
    assert job.run(cache_config(folder, tmp_path / "cache", moved)).units_scored == 0, "the place is not in it"
