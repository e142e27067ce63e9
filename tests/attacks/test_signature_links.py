"""Somebody who shares a folder puts links where signatures go, or other things among them."""

from pathlib import Path

import pytest

from schemas.derivation import Selection
from schemas.errors import CorruptCacheError, UserError
from schemas.signature import signature_file
from support.attacked import Signed, signed_cache
from support.commands import run
from support.signed import public_key
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage
from tools.checking.verify import verify
from tools.sharing.subset import choose, open_source, write_subset
from tools.trust.carry import carry_signatures
from tools.trust.sign import generate_key, load_private_key, sign, trust_check


@pytest.fixture
def cache(tmp_path: Path) -> Signed:
    return signed_cache(tmp_path / "cache")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_key(tmp_path / "key", "alice")
    return tmp_path / "key"


def test_a_folder_of_signatures_that_is_a_link(tmp_path: Path, cache: Signed, key: Path) -> None:
    """``signatures`` leads to a folder elsewhere, where the signature would be written."""
    elsewhere = tmp_path / "elsewhere"
    (Path(cache.url) / "signatures").rename(elsewhere)
    (Path(cache.url) / "signatures").symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    done = run("cache-tools", "sign", cache.url, "--key", key)
    assert done.returncode == 2
    assert "signatures: refusing to write through a link" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(elsewhere.iterdir()) == before


@pytest.mark.parametrize("target", ["a file", "nothing"])
def test_a_signature_that_is_a_link(tmp_path: Path, cache: Signed, key: Path, target: str) -> None:
    """The signature's own name leads to a file elsewhere: the link is replaced, what it led to stays."""
    elsewhere = tmp_path / "precious"
    if target == "a file":
        elsewhere.write_text("precious")
    public = key.with_name("key.pub").read_text().split()[0]
    place = Path(cache.url) / signature_file(public)
    place.symlink_to(elsewhere)
    sign(Storage(cache.url), load_private_key(key, str), "alice")
    assert place.is_file()
    assert not place.is_symlink()
    assert elsewhere.exists() == (target == "a file")
    assert not elsewhere.exists() or elsewhere.read_text() == "precious"
    assert verify(cache.url, checks=[trust_check([public])]).problems == []


def test_a_signature_that_leads_out_is_not_read(tmp_path: Path, cache: Signed) -> None:
    """A signature is a link to a file of somebody else: neither read nor sent along."""
    secret = tmp_path / "secret"
    secret.write_text("-----BEGIN PRIVATE KEY-----")
    (Path(cache.url) / signature_file(public_key(2))).symlink_to(secret)
    with pytest.raises(CorruptCacheError, match=signature_file(public_key(2))):
        carry_signatures(Storage(cache.url), read_manifest(Storage(cache.url)), Storage(str(tmp_path / "part")))
    assert not (tmp_path / "part").exists()


def test_files_that_are_not_signatures_are_not_copied(tmp_path: Path, cache: Signed) -> None:
    """A private key lies among the signatures, under a name of its own, and under a signature's."""
    folder = Path(cache.url) / "signatures"
    (folder / "id_ed25519").write_text("-----BEGIN PRIVATE KEY-----")
    target = Storage(str(tmp_path / "part"))
    assert carry_signatures(Storage(cache.url), read_manifest(Storage(cache.url)), target) > 0
    found = sorted(path.name for path in Path(target.url, "signed/signatures").iterdir())
    assert found == [f"{cache.public}.json"]
    (folder / f"{'7' * 64}.json").write_text("-----BEGIN PRIVATE KEY-----")
    with pytest.raises(UserError, match=f"{'7' * 64}.json"):
        carry_signatures(Storage(cache.url), read_manifest(Storage(cache.url)), Storage(str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_a_part_whose_folder_of_the_whole_is_a_link(tmp_path: Path, cache: Signed) -> None:
    """``signed`` of a target leads elsewhere, where the whole's manifest would be written."""
    elsewhere, part = tmp_path / "elsewhere", tmp_path / "part"
    elsewhere.mkdir()
    part.mkdir()
    (part / "signed").symlink_to(elsewhere)
    source, manifest = open_source(cache.url)
    with pytest.raises(UserError, match=r"signed: .*link"):
        write_subset(choose(source, manifest, Selection(shards=[(0, 0)])), str(part))
    assert list(elsewhere.iterdir()) == []
