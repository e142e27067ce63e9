"""Validity of signatures."""

from pathlib import Path

import pytest

from support.signed import SIGNED_AT, key_of, public_key, sign
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage
from tools.trust import signatures as signatures_module
from tools.trust.signatures import signatures, valid_signatures


@pytest.fixture
def url(tmp_path: Path) -> str:
    write_cache(str(tmp_path), random_shards([[5]]))
    return str(tmp_path)


def signers(url: str) -> list[str]:
    storage = Storage(url)
    return sorted(statement.signer for _, statement in valid_signatures(storage, read_manifest(storage)))


def test_a_cache_without_signatures(url: str) -> None:
    assert signers(url) == []


def test_all_valid_signatures_are_found(url: str) -> None:
    sign(url, 1, "Ann")
    sign(url, 2, "Bob")
    assert signers(url) == ["Ann", "Bob"]
    storage = Storage(url)
    found = valid_signatures(storage, read_manifest(storage))
    assert [key for key, _ in found] == sorted([public_key(1), public_key(2)])
    assert {statement.signed_at for _, statement in found} == {SIGNED_AT}


@pytest.mark.parametrize(
    "changes",
    [
        {"signer": "Somebody else"},
        {"signed_at": "2026-11-02T12:00:00Z"},
        {"manifest_sha256": "0" * 64},
        {"signature": "0" * 128},
        {"signature": "short"},
        {"public_key": public_key(3)},
        {"more": 1},
        {"signer": "\x1b[2J"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_signature_that_was_changed_does_not_count(url: str, changes: dict[str, str]) -> None:
    sign(url, 1, "Ann")
    sign(url, 2, "Bob", **changes)
    assert signers(url) == ["Ann"]


def test_a_signature_over_another_manifest_does_not_count(url: str, tmp_path: Path) -> None:
    sign(url, 1, "Ann")
    write_cache(url, random_shards([[6]], seed=1))
    assert signers(url) == []


def test_a_signature_counts_under_the_name_of_its_key_only(url: str) -> None:
    sign(url, 1, "Ann")
    folder = Path(url) / "signatures"
    (folder / f"{public_key(2)}.json").write_bytes((folder / f"{public_key(1)}.json").read_bytes())
    (folder / "notes.txt").write_text("not a signature")
    assert signers(url) == ["Ann"]


def test_only_so_many_files_are_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 6):
        sign(url, number, f"{number}")
    monkeypatch.setattr(signatures_module, "MAX_SIGNATURES", 3)
    assert len(signers(url)) == 3


def test_the_statement_is_what_is_signed(url: str) -> None:
    sign(url, 1, "Ann", signature=key_of(1).sign(b"something else").hex())
    assert signers(url) == []


def test_why_a_signature_does_not_count_is_said(url: str) -> None:
    sign(url, 1, "Ann", manifest_sha256="0" * 64)
    sign(url, 2, "Bob")
    (Path(url) / f"signatures/{public_key(3)}.json").write_bytes(b"nonsense")
    problems = {key: problem for key, _, problem in signatures(Storage(url), read_manifest(Storage(url)))}
    assert "forged or modified" in problems[public_key(1)]
    assert problems[public_key(2)] == ""
    assert "JSON" in problems[public_key(3)]
