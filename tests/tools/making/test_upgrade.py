"""Older caches made fit for students with another tokenizer: what is added, what stays bit-identical, and refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from schemas.cache_config import CacheConfig
from schemas.errors import ConflictError, CorruptCacheError, UserError
from schemas.load import validate
from support.forge import change_index
from support.golden import BUNDLED, GOLDEN, SIGNALS, WITH_CHATS, array_digests
from support.models import tiny_tokenizer, write_random_teacher
from support.signed import public_key, sign
from support.synthetic import random_shards, write_cache
from support.workspace import cache_tree
from teacher_cache.job import run
from teacher_cache.shards.chats import chat_of
from teacher_cache.shards.lease import whole_place
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.trust.check_signatures import check_trust
from tools.cache_tools_cli import main
from tools.checking.verify import verify
from tools.looking.align import align
from tools.making.derived import source_of
from tools.making.merge import merge
from tools.making.unrender import Outcome
from tools.making.upgrade import upgrade


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the golden caches' teacher, without its weights."""
    folder = write_random_teacher(tmp_path_factory.mktemp("teacher"), hidden_size=16, head_dim=8)
    (folder / "model.safetensors").unlink()
    return folder


def changed(folder: Path, teacher: Path, **settings: Any) -> str:
    """A copy of the teacher's folder with changed settings of the tokenizer."""
    shutil.copytree(teacher, folder)
    tokenizer = tiny_tokenizer()
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_golden_cache_of_1_1_becomes_that_of_1_2(teacher: Path, tmp_path: Path) -> None:
    """The same teacher read the same texts; so all arrays, records and tokens are those of the plan of a 1.2 cache."""
    report = upgrade(str(BUNDLED), f"{tmp_path}/b", str(teacher))
    assert (report.format_before, report.format) == ("1.1", "1.2")
    assert (report.chats, report.chats_with_messages, report.chats_without_messages) == (4, 4, {})
    assert (report.stop_tokens, report.signatures_to_renew) == ([0, 2], 0)
    assert array_digests(tmp_path / "b") == json.loads((WITH_CHATS.parent / "format-1.2.json").read_text())
    assert (tmp_path / "b/vocabulary.arrow").read_bytes() == (WITH_CHATS / "vocabulary.arrow").read_bytes()
    assert verify(f"{tmp_path}/b").problems == []


@pytest.mark.parametrize("old", [GOLDEN, BUNDLED], ids=lambda folder: folder.name)
def test_all_but_records_stays_as_it_was(teacher: Path, tmp_path: Path, old: Path) -> None:
    shutil.copytree(old, tmp_path / "a")
    upgrade(f"{tmp_path}/a", f"{tmp_path}/b", str(teacher))
    before, after = (CacheReader(f"{tmp_path}/{name}", SIGNALS) for name in "ab")
    assert after.keys == before.keys
    for number in range(len(before)):
        was, now = before.read_tokens(number), after.read_tokens(number)
        for name, value in vars(was).items():
            assert name == "chat" or np.array_equal(getattr(now, name), value)
        assert bool(now.chat) == (not was.loss_mask[:-1].all())
        for signal in SIGNALS[1:]:
            assert after.payload(number, signal) == before.payload(number, signal)
    for name in Storage(f"{tmp_path}/a").names():
        same = not name.endswith(("tokens.tar", "manifest.json")) and "shard-" not in name.partition(".json")[0]
        if same or (name.endswith(".tar") and "tokens" not in name):
            assert (tmp_path / "b" / name).samefile(tmp_path / "a" / name), name
    manifest, base = read_manifest(Storage(f"{tmp_path}/b")), read_manifest(Storage(str(old)))
    assert manifest.derived is not None
    assert (manifest.derived.action, manifest.derived.sources) == ("upgrade", [source_of(base)])
    unchanged = {"teacher", "tokenizer", "corpus", "capture", "codec", "provenance", "head", "tables"}
    assert manifest.model_dump(include=unchanged) == base.model_dump(include=unchanged)
    assert verify(f"{tmp_path}/b").problems == []
    assert array_digests(old) == {
        name: digest
        for name, digest in array_digests(tmp_path / "b").items()
        if name != "tokens.chat" and not name.startswith("vocabulary.")
    }


def test_a_student_with_another_tokenizer_can_be_taught(teacher: Path, tmp_path: Path) -> None:
    upgrade(str(GOLDEN), f"{tmp_path}/b", str(teacher))
    found = align(f"{tmp_path}/b", str(teacher), None).summary()
    assert found["taught"] == {"strict": 1.0, "border": 1.0, "all": 1.0}
    assert (found["samples_left_out"], found["kinds"]["stop"]) == (0, 3)


def chat_cache(folder: Path, teacher: Path, chats: list[Any], **corpus: Any) -> Path:
    """A cache of chats and one plain text, by a random teacher, with what format 1.2 added taken away."""
    folder.mkdir()
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    (folder / "text.txt").write_text("def f1(x): return x + 1 <|im_end|>")
    sources = [{"path": str(folder / "chats.jsonl")}, {"path": str(folder / "text.txt"), "format": "text"}]
    tree = cache_tree(teacher, folder, folder / "new", capture={"logits": {"k": 4}}, tokens_per_shard=60)
    tree["corpus"] = {"sources": sources, "max_tokens": 80, **corpus}
    run(validate(CacheConfig, tree, "test"))
    return folder / "new"


def as_of_1_1(new: Path, old: Path) -> list[bytes]:
    """Write a 1.2 cache to ``old`` as of format 1.1; returns the records that it had."""
    reader = CacheReader(str(new), ("tokens", "logits"))
    samples = [(reader.read_tokens(number), reader.read_logits(number)) for number in range(len(reader))]
    ends = np.cumsum(reader.shard_sizes).tolist()
    shards = [
        [(replace(tokens, chat=b""), rows) for tokens, rows in samples[end - size : end]]
        for end, size in zip(ends, reader.shard_sizes.tolist(), strict=True)
    ]
    base = reader.manifest
    made = write_cache(str(old), shards, base.teacher.vocab_size, base.capture.logits, base.codec)
    kept = {name: getattr(base, name) for name in ("teacher", "tokenizer", "corpus")}
    (old / "vocabulary.arrow").unlink()
    manifest = made.model_copy(update={**kept, "vocabulary": None, "format_minor": 1, "sha256": ""})
    (old / "manifest.json").write_text(manifest.to_json())
    return [tokens.chat for tokens, _ in samples]


CHATS: list[Any] = [
    [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}],
    [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "def f(x)"},
        {"role": "assistant", "content": "Où est l'été ?", "weight": 0},
        {"role": "user", "content": "é"},
        {"role": "assistant", "content": "東京"},
    ],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "return x + 1  " * 30}],  # cut
]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A cache of format 1.1 of several shards, by a teacher beside it, and the records that it lacks."""
    folder = tmp_path_factory.mktemp("chats")
    new = chat_cache(folder / "made", write_random_teacher(folder / "teacher"), CHATS)
    return folder / "old", as_of_1_1(new, folder / "old")


def test_records_are_those_of_the_plan(chats: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    old, records = chats
    done: list[tuple[int, int]] = []
    report = upgrade(str(old), f"{tmp_path}/b", str(old.parent / "teacher"), advance=lambda *n: done.append(n))
    reader = CacheReader(f"{tmp_path}/b", ("tokens", "logits"))
    assert [reader.read_tokens(number).chat for number in range(len(reader))] == records
    assert [bool(record) for record in records] == [True, True, True, False]
    assert len(reader.shard_sizes) > 1
    assert report.shards_rewritten == len(reader.shard_sizes) - (reader.shard_sizes[-1] == 1)
    assert done[-1] == (4, 4)
    assert verify(f"{tmp_path}/b").problems == []
    closed = [chat_of(reader.read_tokens(n), "here").messages[-1].closed for n in range(3)]  # type: ignore[union-attr]
    assert closed == [True, True, False]


def test_a_chat_that_cannot_be_proven_is_counted_and_has_no_messages(
    chats: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    """Another template of the same markup: it is known to be another one where the manifest says so."""
    old, _ = chats
    teacher = old.parent / "teacher"
    template = str(tiny_tokenizer().chat_template).replace("<|im_end|>\n'", "<|im_end|>'")
    other = changed(tmp_path / "other", teacher, chat_template=template)
    with pytest.raises(UserError, match=r"--tokenizer .*other: the sha256 of its chat template is [0-9a-f]{64}, the"):
        upgrade(str(old), f"{tmp_path}/b", other)
    assert Storage(f"{tmp_path}/b").names() == []
    shutil.copytree(old, tmp_path / "a")
    manifest = read_manifest(Storage(f"{tmp_path}/a"))
    unknown = manifest.tokenizer.model_copy(update={"chat_template": None, "files": {}})
    (tmp_path / "a/manifest.json").write_text(
        manifest.model_copy(update={"tokenizer": unknown, "sha256": ""}).to_json()
    )
    report = upgrade(f"{tmp_path}/a", f"{tmp_path}/b", other)
    assert (report.chats, report.chats_with_messages) == (3, 0)
    assert report.chats_without_messages == {Outcome.MARKUP.value: 3}
    reader = CacheReader(f"{tmp_path}/b", ("tokens", "logits"))
    assert [reader.read_tokens(number).chat for number in range(4)] == [b'{"messages":[]}'] * 3 + [b""]
    assert align(f"{tmp_path}/b", str(teacher), None).summary()["samples_left_out"] == 3
    (tmp_path / "as-it-was.jinja").write_text(str(tiny_tokenizer().chat_template))
    again = upgrade(str(old), f"{tmp_path}/c", other, tmp_path / "as-it-was.jinja")
    assert (again.chats_with_messages, again.chats_without_messages) == (3, {})


def test_a_template_of_ones_own_has_to_be_given(tmp_path: Path) -> None:
    teacher, own = write_random_teacher(tmp_path / "teacher"), tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}<|endoftext|>{% endfor %}")
    new = chat_cache(tmp_path / "made", teacher, CHATS[:2], chat_template=str(own))
    records = as_of_1_1(new, tmp_path / "old")
    with pytest.raises(UserError, match=r"rendered with the chat template own.jinja, which is not the tokenizer's"):
        upgrade(f"{tmp_path}/old", f"{tmp_path}/b", str(teacher))
    report = upgrade(f"{tmp_path}/old", f"{tmp_path}/b", str(teacher), own)
    assert (report.chats_with_messages, report.stop_tokens) == (2, [0])
    reader = CacheReader(f"{tmp_path}/b", ("tokens", "logits"))
    assert [reader.read_tokens(number).chat for number in range(len(reader))] == records


def test_a_signed_cache_is_to_be_signed_again(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "a")
    sign(f"{tmp_path}/a", 1, "Ada")
    arguments = ["upgrade", f"{tmp_path}/a", f"{tmp_path}/b", "--tokenizer", str(teacher)]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert f"{tmp_path}/a is signed, {tmp_path}/b is not: cache-tools sign" in shown.stdout
    storage = Storage(f"{tmp_path}/b")
    with pytest.raises(CorruptCacheError, match=public_key(1)):
        check_trust(storage, read_manifest(storage), [public_key(1)])
    arguments[2] = f"{tmp_path}/c"
    assert json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)["signatures_to_renew"] == 1


def test_what_cannot_be_upgraded_is_refused_and_nothing_is_left(teacher: Path, tmp_path: Path) -> None:
    target, other = f"{tmp_path}/b", tiny_tokenizer()
    with pytest.raises(UserError, match=r"format-1.2: it has a vocabulary already \(format 1.2\), so there is nothing"):
        upgrade(str(WITH_CHATS), target, str(teacher))
    other.add_tokens(["more"])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"--tokenizer .*other: fingerprint [0-9a-f]{64}, wanted the cache's, 9072856e"):
        upgrade(str(BUNDLED), target, f"{tmp_path}/other")
    with pytest.raises(UserError, match=r"--tokenizer: .*nowhere \(no such folder\): cannot load a tokenizer"):
        upgrade(str(BUNDLED), target, f"{tmp_path}/nowhere")
    tiny_tokenizer().save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"bare: neither generation_config.json nor config.json says which tokens end"):
        upgrade(str(BUNDLED), target, f"{tmp_path}/bare")
    write_cache(f"{tmp_path}/half", random_shards([[9], [8]]), commit=1)
    with pytest.raises(UserError, match="half: the cache is not complete: 1 of 2 shards"):
        upgrade(f"{tmp_path}/half", target, str(teacher))
    with pytest.raises(UserError, match="a cache already exists"):
        upgrade(str(BUNDLED), str(GOLDEN), str(teacher))
    assert not Path(target).exists()


@pytest.mark.parametrize("old", [GOLDEN, BUNDLED], ids=lambda folder: folder.name)
def test_a_damaged_text_is_named_and_nothing_is_left(teacher: Path, tmp_path: Path, old: Path) -> None:
    shutil.copytree(old, tmp_path / "a")
    file = tmp_path / "a/shard-000000.tokens.tar"
    data = bytearray(file.read_bytes())
    data[data.index(b"\x28\xb5\x2f\xfd") + 40] ^= 1  # of a zstd frame
    file.write_bytes(data)
    with pytest.raises(CorruptCacheError, match=r"a/shard-000000.tokens.tar: "):
        upgrade(f"{tmp_path}/a", f"{tmp_path}/b", str(teacher))
    assert Storage(f"{tmp_path}/b").names() == []


def test_one_writer_at_a_place(teacher: Path, tmp_path: Path) -> None:
    with (
        whole_place(Storage(f"{tmp_path}/b"), "another command"),
        pytest.raises(ConflictError, match="another command"),
    ):
        upgrade(str(BUNDLED), f"{tmp_path}/b", str(teacher))
    upgrade(str(BUNDLED), f"{tmp_path}/b", str(teacher))


def test_from_a_disk_to_a_store_and_back(chats: tuple[Path, list[bytes]], s3_url: str, tmp_path: Path) -> None:
    old, records = chats
    for source, target in ((str(old), f"{s3_url}/b"), (str(old), f"{tmp_path}/b")):
        upgrade(source, target, str(old.parent / "teacher"))
    assert read_manifest(Storage(f"{s3_url}/b")).digest() == read_manifest(Storage(f"{tmp_path}/b")).digest()
    reader = CacheReader(f"{s3_url}/b", ("tokens", "logits"))
    assert [reader.read_tokens(number).chat for number in range(len(reader))] == records


def test_an_index_of_another_cache_is_refused(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "a")
    change_index(f"{tmp_path}/a", lambda tree: tree["signals"]["tokens"]["checksums"].__setitem__(2, "0" * 16))
    with pytest.raises(CorruptCacheError, match="xxh3 of its"):
        upgrade(f"{tmp_path}/a", f"{tmp_path}/b", str(teacher))


def test_a_union_with_an_older_cache_has_no_vocabulary_until_it_is_upgraded(
    chats: tuple[Path, list[bytes]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the chats of the older one would be taken for plain texts."""
    old, records = chats
    upgrade(str(old), str(tmp_path / "new"), str(old.parent / "teacher"))
    merge([str(old), str(tmp_path / "new")], str(tmp_path / "union"), duplicates="keep")
    assert read_manifest(Storage(str(tmp_path / "union"))).vocabulary is None
    assert f"the union has no vocabulary.arrow, as {old} has none" in caplog.text
    upgrade(str(tmp_path / "union"), str(tmp_path / "upgraded"), str(old.parent / "teacher"))
    reader = CacheReader(str(tmp_path / "upgraded"), ("tokens",))
    assert reader.manifest.vocabulary is not None
    assert [reader.read_tokens(number).chat for number in range(len(reader))] == records * 2
