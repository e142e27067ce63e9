"""Streams of whole files: by signed URL as far as possible, the rest through the store's client."""

from base64 import b64decode
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import CorruptCacheError
from support.proxy import proxied
from teacher_cache.shards import store_requests
from teacher_cache.shards.storage import Storage

DATA = np.random.default_rng(0).bytes(700_001)


@pytest.fixture(params=["folder", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return Storage(request.getfixturevalue("s3_url"))
    return Storage(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}")


def joined(storage: Storage, size: int) -> bytes:
    return b"".join(bytes(part) for part in storage.stream("a.tar", size))


@pytest.mark.parametrize("size", [0, 1, 700_000, 700_001, 900_000])
def test_a_stream_is_the_beginning_of_a_file(storage: Storage, size: int) -> None:
    storage.put("a.tar", DATA)
    assert joined(storage, size) == DATA[:size]
    assert b"".join(storage.parts("a.tar", size)) == DATA[:size]


def test_a_missing_file_is_named(storage: Storage) -> None:
    with pytest.raises(CorruptCacheError, match=r"a\.tar: the file is missing"):
        joined(storage, 5)


def test_an_object_comes_by_one_request(s3_url: str, s3_server: str) -> None:
    Storage(s3_url).put("a.tar", DATA)
    with proxied(s3_server) as proxy:
        assert joined(Storage(s3_url), len(DATA)) == DATA
        assert [method for method, _ in proxy.requests] == ["GET"]


@pytest.mark.parametrize("fault", ["error", "silence", "stall", "truncation", "reset"])
def test_the_rest_of_a_truncated_stream_is_read_in_ranges(s3_url: str, s3_server: str, monkeypatch, fault: str) -> None:
    Storage(s3_url).put("a.tar", DATA)
    monkeypatch.setattr(store_requests, "PATIENCE", 1.0)
    monkeypatch.setattr(store_requests, "FIRST_DELAY", 0.01)
    with proxied(s3_server, shares={fault: 0.5}) as proxy:
        storage = Storage(s3_url)
        while not proxy.injected:
            assert joined(storage, len(DATA)) == DATA


def test_an_object_goes_by_one_request(s3_url: str, s3_server: str) -> None:
    with proxied(s3_server) as proxy:
        Storage(s3_url).put("a.tar", DATA)
        assert [method for method, _ in proxy.requests] == ["PUT"]
    assert Storage(s3_url).read("a.tar") == DATA


def test_refused_requests_fall_back_to_the_client(s3_url: str, s3_server: str, monkeypatch) -> None:
    storage = Storage(s3_url)
    monkeypatch.setattr(storage._fs, "sign", lambda path, **how: f"{s3_server}/no-such-bucket/a.tar")
    storage.put("a.tar", DATA)
    assert Storage(s3_url).read("a.tar") == DATA


def test_settings_of_uploads_are_kept(s3_url: str, s3_server: str, monkeypatch) -> None:
    """A URL cannot carry them."""
    storage, signed = Storage(s3_url), []
    monkeypatch.setattr(storage._fs, "sign", lambda *_, **__: signed.append(1))
    monkeypatch.setattr(storage._fs, "s3_additional_kwargs", {"ServerSideEncryption": "AES256"})
    storage.put("a.tar", DATA)
    assert signed == []
    assert storage.read("a.tar") == DATA


def test_a_store_whose_urls_do_not_work_is_asked_in_its_own_way(s3_url: str, s3_server: str, monkeypatch) -> None:
    Storage(s3_url).put("a.tar", DATA)
    with proxied(s3_server) as proxy:
        storage, asked = Storage(s3_url), []

        def sign(path: str, expiration: int) -> str:
            asked.append(path)
            return "file:///etc/hostname"

        monkeypatch.setattr(storage._fs, "sign", sign)
        for _ in range(2):
            assert joined(storage, len(DATA)) == DATA
        assert len(asked) == 1, "it is not tried for every file"
        assert {method for method, _ in proxy.requests} <= {"GET", "HEAD"}


def test_the_store_is_told_the_sha256(s3_url: str, monkeypatch) -> None:
    storage, signed = Storage(s3_url), []
    sign = storage._fs.sign
    monkeypatch.setattr(storage._fs, "sign", lambda path, **how: signed.append(how) or sign(path, **how))
    storage.put("a.tar", DATA)
    assert b64decode(signed[0]["ChecksumSHA256"]) == sha256(DATA).digest()
