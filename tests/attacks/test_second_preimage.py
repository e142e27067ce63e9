"""Somebody replaces a payload of a signed cache by other bytes of the same size and the same xxh3-64."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Signal
from support.attacked import VOCABULARY, change_member, replace_payload, signed_cache
from support.commands import run
from support.second_preimage import second_preimage
from teacher_cache.api import open_cache
from teacher_cache.shards.marks import read_manifest, read_mark
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.tar import checksum
from tools.checking.verify import verify
from tools.making.derived import copy_samples

REPLACED = "sha256 of its .* bytes begins with .* although the xxh3 matches"
ROWS = [[0], [1]]


def test_xxh3_second_preimages_are_cheap() -> None:
    """The attack is real: thousands of forgeries a second, all of them right by their checksum."""
    rng, started = np.random.default_rng(0), time.process_time()
    for size in range(401, 3401):
        payload = rng.bytes(size)
        forged = second_preimage(payload, lane=size % 8)
        assert (len(forged), checksum(forged)) == (size, checksum(payload))
        assert forged != payload
    assert time.process_time() - started < 10


@pytest.mark.parametrize("signal", ["tokens", "logits"])
def test_a_reader_refuses_a_colliding_payload_at_first_use(tmp_path: Path, signal: Signal) -> None:
    """A payload is replaced in a cache with digests: no reader needs to ask for anything to be safe from it."""
    url, public, digest = signed_cache(tmp_path / "cache")
    name = replace_payload(url, signal)
    reader = CacheReader(url)
    key = reader.keys[0]
    for read in (
        lambda: reader.read_rows(ROWS),
        lambda: list(reader.read_batches([ROWS])),
        lambda: reader.payload(0, signal),
        lambda: getattr(reader, f"read_{signal}")(0),
        lambda: getattr(open_cache(url, digest=digest, require_signature=public)[0], signal),
    ):
        with pytest.raises(CorruptCacheError, match=rf"{name}: sample {key}: {REPLACED}"):
            read()
    reader.read_rows([[1], [2]])
    assert any(name in problem and "the xxh3 matches" in problem for problem in verify(url).problems)


def test_a_colliding_payload_is_not_copied_into_another_cache(tmp_path: Path) -> None:
    """A payload is replaced before samples are taken to a new shard, whose index would vouch for it."""
    url, _, _ = signed_cache(tmp_path / "cache")
    name = replace_payload(url)
    source, target = Storage(url), Storage(str(tmp_path / "target"))
    with pytest.raises(CorruptCacheError, match=rf"{name}: sample .*{REPLACED}"):
        copy_samples(source, target, read_mark(source, "shard-000000"), [0], ["logits"], "shard-000000")


def test_a_colliding_payload_from_a_store_is_refused(s3_url: str, tmp_path: Path) -> None:
    """A store replaces a payload: refused when it is read by ranges, and when the whole tar is fetched."""
    url, public, _ = signed_cache(s3_url)
    name = replace_payload(url)
    with pytest.raises(CorruptCacheError, match=rf"{name}: sample \w+: {REPLACED}"):
        _ = open_cache(url, ["logits"], require_signature=public)[0].logits
    with pytest.raises(CorruptCacheError, match=rf"{name}: fetched twice, its sha256 is "):
        _ = open_cache(url, ["logits"], (str(tmp_path / "copies"), 1 << 20), require_signature=public)[0].logits


def open_bound(url: str, digest: str, copies: tuple[str, int] | None = None) -> CacheReader:
    manifest = read_manifest(Storage(url))
    assert manifest.digest() == digest
    return CacheReader(url, ("tokens", "logits"), manifest, copies, bound=True)


def test_a_cache_of_format_1_0_is_bound_by_whole_tars(tmp_path: Path) -> None:
    """A payload is replaced in a cache without digests: only whoever asks for a digest or a signature is safe."""
    url, public, digest = signed_cache(tmp_path / "cache", digests=False)
    assert read_manifest(Storage(url)).format_minor == 0
    wanted = CacheReader(url).read_rows(ROWS)
    np.testing.assert_array_equal(open_bound(url, digest).read_rows(ROWS).ids, wanted.ids)
    name = replace_payload(url)
    CacheReader(url).payload(0, "logits")  # xxh3 says nothing
    for read in (
        lambda: open_bound(url, digest).read_rows(ROWS),
        lambda: open_bound(url, digest).payload(1, "logits"),
        lambda: open_cache(url, digest=digest)[0].logits,
        lambda: open_cache(url, require_signature=public)[0].logits,
    ):
        with pytest.raises(CorruptCacheError, match=f"{name}: its sha256 is .*, the manifest says"):
            read()
    assert open_cache(url, digest=digest)[0].text  # of another tar, and that is whole


def test_a_tar_that_is_replaced_after_its_first_use(tmp_path: Path) -> None:
    """The tar of a cache without digests is replaced while a training run reads it."""
    url, _, digest = signed_cache(tmp_path / "cache", digests=False)
    reader = open_bound(url, digest)
    reader.read_logits(0)
    path = Path(url) / "shard-000000.logits.tar"
    status = path.stat()
    data = bytearray(path.read_bytes())
    member = read_mark(Storage(url), "shard-000000").signals["logits"]
    start, end = member.offsets[1], member.offsets[1] + member.sizes[1]
    with path.open("r+b") as file:  # in place, of the same size and date
        file.seek(start)
        file.write(second_preimage(bytes(data[start:end])))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CorruptCacheError, match=f"{path.name}: its sha256 is"):
        reader.read_logits(1)


def test_format_1_0_in_a_store(s3_url: str, tmp_path: Path) -> None:
    """A store could send one thing to be checked and another to be read: local copies, or a refusal that names them."""
    url, _, digest = signed_cache(s3_url, digests=False)
    wanted = CacheReader(url).read_rows(ROWS)
    with pytest.raises(UserError, match=r"shard-000000\.tokens\.tar: format 1\.0 .*data\.local_copies"):
        open_bound(url, digest).read_rows(ROWS)
    copies = tmp_path / "copies"
    found = open_bound(url, digest, (str(copies), 1 << 20)).read_rows(ROWS)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    (copy,) = (path for path in copies.iterdir() if path.name == _sha256_of_logits(url))
    data = bytearray(copy.read_bytes())
    member = read_mark(Storage(url), "shard-000000").signals["logits"]
    start, end = member.offsets[0], member.offsets[0] + member.sizes[0]
    data[start:end] = second_preimage(bytes(data[start:end]))
    copy.write_bytes(data)
    found = open_bound(url, digest, (str(copies), 1 << 20)).read_rows(ROWS)  # is fetched again
    np.testing.assert_array_equal(found.ids, wanted.ids)


def _sha256_of_logits(url: str) -> str:
    return read_mark(Storage(url), "shard-000000").signals["logits"].file.sha256


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def train(cache: str, student: Path, output: Path, **data: Any) -> str:
    """What a run of two steps fails with, or nothing."""
    tree = {
        "data": {"cache": cache, **data},
        "student": {"checkpoint": str(student)},
        "loop": {"max_steps": 3, "micro_batch_size": 2},
        "output": str(output),
    }
    output.with_suffix(".json").write_text(json.dumps(tree))
    done = run("train-student", "run", output.with_suffix(".json"))
    assert "Traceback" not in done.stderr
    assert done.returncode in ((2, 3) if "error: " in done.stderr else (0,)), done.stderr
    return "".join(line for line in done.stderr.splitlines() if line.startswith("error: "))


@pytest.mark.parametrize("digests", [True, False], ids=["1.1", "1.0"])
def test_a_trainer_refuses_a_colliding_payload_at_first_use(tmp_path: Path, student: Path, digests: bool) -> None:
    """Every payload of one tar is replaced before a student is trained on the cache."""
    url, public, digest = signed_cache(tmp_path / "cache", digests)
    assert train(url, student, tmp_path / "sound", require_signature=public, validation_fraction=0.3) == ""
    for row in (0, 1):
        name = replace_payload(url, row=row)
    for number, share in enumerate(({"digest": digest}, {"require_signature": public})):
        error = train([{"url": url, **share}], student, tmp_path / f"forged-{number}")  # type: ignore[arg-type]
        assert name in error, error
        assert "sha256" in error
    assert not list(tmp_path.glob("forged-*/checkpoint-*"))


def test_a_trainer_refuses_another_cache(tmp_path: Path, student: Path) -> None:
    """Another cache, whole and signed by somebody else, is put where the signed one was."""
    url, public, digest = signed_cache(tmp_path / "cache")
    error = train(url, student, tmp_path / "a", require_signature="9" * 64)
    assert f"signatures/{'9' * 64}.json: the file is missing" in error
    error = train(url, student, tmp_path / "n", require_signature="a stranger")
    assert "key 'a stranger': not among the" in error
    error = train([{"url": url, "digest": "9" * 64}], student, tmp_path / "b")  # type: ignore[arg-type]
    assert f"manifest.json: its sha256 is {digest}, wanted 999" in error
    held_out = {"validation_cache": url, "validation_digest": "9" * 64}
    error = train([{"url": url, "digest": digest}], student, tmp_path / "c", **held_out)  # type: ignore[arg-type]
    assert f"its sha256 is {digest}, wanted 999" in error
    for options, text in ((("--digest", "9" * 64), "wanted 999"), (("--require-signature", "8" * 64), "is missing")):
        done = run("train-student", "evaluate", student, url, *options)
        assert done.returncode in (2, 3)
        assert "Traceback" not in done.stderr
        assert text in done.stderr
    done = run("train-student", "evaluate", student, url, "--digest", digest, "--require-signature", public)
    assert done.returncode == 0, done.stderr
    name = change_member(url, "logits", 0, 0, second_preimage)
    done = run("train-student", "evaluate", student, url, "--digest", digest)
    assert (done.returncode, name in done.stderr) == (3, True), done.stderr


@pytest.mark.parametrize("place", ["folder", "store"])
def test_samples_taken_of_a_cache_of_format_1_0(s3_url: str, tmp_path: Path, place: str) -> None:
    """A payload is replaced before some samples of a cache without digests are pulled by its signature."""
    url, public, _ = signed_cache(s3_url if place == "store" else tmp_path / "cache", digests=False)
    take = ("cache-tools", "pull", url)
    options = ("--sample", "50%", "--require-signature", public)
    assert run(*take, tmp_path / "loose", *options[:2]).returncode == 0
    done = run(*take, tmp_path / "sound", *options)
    if place == "store":
        assert (done.returncode, "format 1.0 has no digests" in done.stderr) == (2, True), done.stderr
        assert run(*take, tmp_path / "whole", *options[2:]).returncode == 0
        return
    assert done.returncode == 0, done.stderr
    for shard, rows in enumerate(([0, 1], [0, 1, 2], [0])):
        for row in rows:
            name = replace_payload(url, shard=shard, row=row)
    done = run(*take, tmp_path / "forged", *options)
    assert (done.returncode, ".logits.tar: sha256 is" in done.stderr) == (3, True), done.stderr
    assert name
