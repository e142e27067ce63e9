"""The golden cache of each format version is read, and gives the same arrays, for ever."""

import json
from pathlib import Path

import pytest

from support.golden import EVERY_VERSION, array_digests
from teacher_cache.shards.marks import parse_manifest
from teacher_cache.shards.storage import MANIFEST
from tools.checking.verify import verify

every_version = pytest.mark.parametrize("cache", EVERY_VERSION, ids=lambda cache: cache.name)


@every_version
def test_every_array_is_what_it_was_when_the_format_was_frozen(cache: Path) -> None:
    assert array_digests(cache) == json.loads(cache.with_name(f"{cache.name}.json").read_text())


@every_version
def test_verify_accepts_the_golden_cache(cache: Path) -> None:
    assert verify(str(cache)).problems == []
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 200_000


@every_version
def test_its_digest_is_the_one_it_was_written_with(cache: Path) -> None:
    manifest = parse_manifest((cache / MANIFEST).read_bytes(), "golden")
    assert manifest.digest() == manifest.sha256
    assert manifest.to_json().encode() == (cache / MANIFEST).read_bytes()


def test_only_the_newer_ones_need_a_newer_reader() -> None:
    minors = [parse_manifest((cache / MANIFEST).read_bytes(), "golden").format_minor for cache in EVERY_VERSION]
    assert minors == [0, 1, 2]
