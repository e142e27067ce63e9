"""The content of a catalogue is bounded, because its author is untrusted."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.catalog_file import MAX_CACHES, Catalog

ENTRY: dict[str, Any] = {
    "path": "team/cache",
    "manifest_sha256": "a" * 64,
    "format_version": 1,
    "complete": True,
    "teacher": {"name": "t", "revision": None, "architecture": "A", "dtype": "float32", "fingerprint": "b" * 64},
    "tokenizer": {"fingerprint": "c" * 64, "vocab_size": 300},
    "samples": 1,
    "tokens": 2,
    "bytes": 3,
    "bytes_by_signal": {"tokens": 1, "logits": 2},
    "capture": {"logits": "top 8"},
    "licence": "",
    "owner": "",
    "notes": "",
    "written_at": None,
    "derived": None,
    "signatures": [{"public_key": "d" * 64, "signer": "s", "signed_at": "2026-11-01T00:00:00Z"}],
}


def parse(*entries: dict[str, Any]) -> Catalog:
    tree = {"written_at": "2026-11-01T00:00:00Z", "caches": entries, "problems": [], "left_out": 0}
    return Catalog.model_validate_json(json.dumps(tree))


def test_a_catalogue_is_read_as_it_was_written() -> None:
    catalog = parse(ENTRY, ENTRY)
    assert Catalog.model_validate_json(catalog.model_dump_json()) == catalog


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../other"},
        {"path": "/etc"},
        {"path": "a//b"},
        {"path": "a/../b"},
        {"path": "a/b\n"},
        {"path": ""},
        {"path": "a b"},
        {"path": "s3://bucket/a"},
        {"path": "/".join("a" * 9)},
        {"licence": "x" * 201},
        {"notes": "x" * 501},
        {"owner": "\x1b[2J"},
        {"owner": "a\nb"},
        {"owner": "\u202eabc"},
        {"capture": {"telepathy": "all"}},
        {"capture": {"logits": "x" * 201}},
        {"signatures": ENTRY["signatures"] * 21},
        {"manifest_sha256": "A" * 64},
        {"tokens": -1},
        {"bytes": 2**53},
        {"written_at": "2026-11-01T00:00:00"},
        {"more": 1},
    ],
    ids=str,
)
def test_invalid_catalogues_are_refused(change: dict[str, Any]) -> None:
    parse(ENTRY)
    with pytest.raises(ValidationError):
        parse(ENTRY | change)


def test_the_number_of_caches_is_bounded() -> None:
    with pytest.raises(ValidationError, match=f"at most {MAX_CACHES} items"):
        parse(*[ENTRY] * (MAX_CACHES + 1))
