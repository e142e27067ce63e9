"""Keys, signatures, and refusals."""

import json
import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from schemas.errors import CorruptCacheError, UserError
from schemas.signature import Signature, signature_file
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.trust.check_signatures import check_trust, read_statement
from tools.cache_tools_cli import main
from tools.checking.verify import verify
from tools.trust.sign import check_not_older, generate_key, load_private_key, public_file, sign, trust_check


def no_passphrase() -> str:
    raise AssertionError("a passphrase was asked for")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_key(tmp_path / "alice", "Alice A.")
    return tmp_path / "alice"


@pytest.fixture
def cache(tmp_path: Path) -> Storage:
    write_cache(str(tmp_path / "cache"), random_shards([[9, 5], [7]]))
    return Storage(str(tmp_path / "cache"))


def invoke(*arguments: object, **options: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


def test_a_key_is_private_and_never_overwritten(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    public, name = public_file(key).read_text().split(maxsplit=1)
    assert (len(public), name) == (64, "Alice A.\n")
    before = key.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        generate_key(key, "another")
    key.rename(key.with_name("moved"))
    with pytest.raises(UserError, match=r"alice\.pub: exists already"):
        generate_key(key, "another")
    assert not key.exists()
    assert key.with_name("moved").read_bytes() == before


def test_the_signed_statement_is_that_of_the_format(cache: Storage, key: Path) -> None:
    signature = sign(cache, load_private_key(key, no_passphrase), "Alice A.")
    tree = json.loads(cache.read(signature_file(signature.public_key)))
    statement = json.dumps(tree["statement"], separators=(",", ":"))
    assert list(tree["statement"]) == ["manifest_sha256", "signer", "signed_at"]
    assert tree["statement"]["manifest_sha256"] == json.loads(cache.read(MANIFEST))["sha256"]
    message = b"signature of a cache manifest, version 1\n" + statement.encode()
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(tree["public_key"])).verify(
        bytes.fromhex(tree["signature"]), message
    )


@pytest.mark.parametrize("form", ["file", "digits", "name"])
def test_a_key_can_be_given_in_three_ways(cache: Storage, key: Path, tmp_path: Path, form: str) -> None:
    signature = sign(cache, load_private_key(key, no_passphrase), "Alice A.")
    trusted = tmp_path / "trusted"
    trusted.write_text(f"# people\n{'0' * 64} Bob\n\n{signature.public_key}   Alice A.\n")
    given = {"file": str(public_file(key)), "digits": signature.public_key, "name": "Alice A."}[form]
    (found,) = check_trust(cache, read_manifest(cache), [given], trusted)
    assert found == signature.statement
    with pytest.raises(UserError, match=r"'Carol': not among the 2 names in .*trusted"):
        check_trust(cache, read_manifest(cache), [given, "Carol"], trusted)
    with pytest.raises(CorruptCacheError, match=f"{signature_file('0' * 64)}: the file is missing"):
        check_trust(cache, read_manifest(cache), [given, "Bob"], trusted)


def test_an_incomplete_cache_cannot_be_signed(tmp_path: Path, key: Path) -> None:
    write_cache(str(tmp_path / "part"), random_shards([[9], [7]]), commit=1)
    with pytest.raises(UserError, match="1 of 2 shards"):
        sign(Storage(str(tmp_path / "part")), load_private_key(key, no_passphrase), "Alice")
    assert not (tmp_path / "part" / "signatures").exists()


def change(cache: Storage, public: str, **changes: object) -> None:
    """Change fields of a signature file, or of its statement (such as ``signed_at``)."""
    tree = json.loads(cache.read(signature_file(public)))
    for name, value in changes.items():
        (tree if name in tree else tree["statement"])[name] = value
    data = Signature.model_validate_json(json.dumps(tree)).model_dump_json() + "\n"
    cache.write(signature_file(public), data.encode())


def test_files_changed_after_signing_are_refused_by_name(cache: Storage, key: Path, tmp_path: Path) -> None:
    private = load_private_key(key, no_passphrase)
    public = sign(cache, private, "Alice").public_key
    file, manifest = signature_file(public), read_manifest(cache)
    sound = cache.read(file)
    changes = [
        ({"signer": "Bob"}, "does not match its statement"),
        ({"signed_at": "2020-01-01T00:00:00Z"}, "does not match its statement"),
        ({"manifest_sha256": "1" * 64}, "does not match its statement"),
        ({"signature": "0" * 128}, "does not match its statement"),
        ({"public_key": "1" * 64}, "signature by 1111"),
    ]
    for fields, problem in changes:
        change(cache, public, **fields)
        with pytest.raises(CorruptCacheError, match=rf"{file}: .*{problem}"):
            check_trust(cache, manifest, [public])
        cache.write(file, sound)
    for data, problem in [
        (sound + b" ", "one line of JSON"),
        (b"{}", "required and missing"),
        (sound + bytes(1 << 17), "at most 65536 are allowed"),
        (sound.replace(b'"signer":"Alice"', b'"signer":"Alice","admin":true'), "unknown key"),
    ]:
        cache.write(file, data)
        with pytest.raises(CorruptCacheError, match=rf"{file}: .*{problem}"):
            check_trust(cache, manifest, [public])
    cache.write(file, sound)
    assert check_trust(cache, manifest, [public])
    generate_key(tmp_path / "mallory", "Alice")
    forged = sign(cache, load_private_key(tmp_path / "mallory", no_passphrase), "Alice")
    cache.write(file, cache.read(signature_file(forged.public_key)))
    with pytest.raises(CorruptCacheError, match=": signature by"):
        check_trust(cache, manifest, [public])


def test_a_changed_cache_needs_a_new_signature(cache: Storage, key: Path) -> None:
    private = load_private_key(key, no_passphrase)
    first = sign(cache, private, "Alice")
    write_cache(cache.url, random_shards([[9, 5], [7], [3]], seed=1))
    with pytest.raises(CorruptCacheError, match="signed manifest"):
        check_trust(cache, read_manifest(cache), [first.public_key])
    second = sign(cache, private, "Alice")
    assert check_trust(cache, read_manifest(cache), [first.public_key]) == [second.statement]


def test_an_older_state_is_not_taken_for_a_newer_one(cache: Storage, key: Path, tmp_path: Path) -> None:
    """A rollback to an older signed manifest is refused where the newer one is, and accepted elsewhere."""
    private = load_private_key(key, no_passphrase)
    old, old_manifest = sign(cache, private, "Alice"), cache.read(MANIFEST)
    old_file = cache.read(signature_file(old.public_key))
    write_cache(cache.url, random_shards([[9, 5], [7], [3]], seed=1))
    new = sign(cache, private, "Alice")
    target = Storage(str(tmp_path / "target"))
    check = trust_check([new.public_key], target=target)
    check(cache, read_manifest(cache))
    target.write(signature_file(new.public_key), cache.read(signature_file(new.public_key)))
    check(cache, read_manifest(cache))
    check_not_older(new.statement, old.statement)
    cache.write(MANIFEST, old_manifest)
    cache.write(signature_file(old.public_key), old_file)
    with pytest.raises(UserError, match="an older state of the cache was put back"):
        check(cache, read_manifest(cache))
    trust_check([new.public_key], target=Storage(str(tmp_path / "empty")))(cache, read_manifest(cache))
    with pytest.raises(UserError, match="older state"):
        check_not_older(old.statement, new.statement)
    again = old.statement.model_copy(update={"signed_at": old.statement.signed_at - timedelta(days=1)})
    check_not_older(again, old.statement)


def test_a_signature_in_a_store(s3_url: str, key: Path) -> None:
    write_cache(s3_url, random_shards([[9, 5]]))
    cache = Storage(s3_url)
    signature = sign(cache, load_private_key(key, no_passphrase), "Alice")
    assert read_statement(cache, signature.public_key) == signature.statement
    assert check_trust(cache, read_manifest(cache), [signature.public_key])


def test_only_files_of_the_required_keys_are_read(cache: Storage, key: Path) -> None:
    public = sign(cache, load_private_key(key, no_passphrase), "Alice").public_key
    (Path(cache.url) / signature_file("2" * 64)).write_bytes(b"rubbish")
    assert verify(cache.url, checks=[trust_check([public])]).problems == []


def test_commands(tmp_path: Path, cache: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CACHE_TOOLS_PASSPHRASE", "a secret")
    key = tmp_path / "bob"
    made = invoke("keygen", key, "--passphrase", "--json")
    assert made.exit_code == 0, made.output
    public = json.loads(made.stdout)["public_key"]
    assert public_file(key).read_text() == f"{public} bob\n"
    assert b"ENCRYPTED" in key.read_bytes()
    unsigned = invoke("verify", cache.url, "--require-signature", f"{key}.pub")
    assert unsigned.exit_code == 1
    assert f"{signature_file(public)}: the file is missing" in unsigned.stdout
    signed = invoke("sign", cache.url, "--key", key, "--json")
    assert json.loads(signed.stdout)["signer"] == "bob"
    assert invoke("verify", cache.url, "--require-signature", f"{key}.pub").exit_code == 0
    unknown = invoke("verify", cache.url, "--require-signature", "bob")
    assert unknown.exit_code == 2
    assert "error: key 'bob': not among the 0 names" in unknown.stderr
    assert json.loads(invoke("trust", f"{key}.pub", "--json").stdout) == {"bob": public}
    assert invoke("verify", cache.url, "--require-signature", "bob", "--quick").exit_code == 0
    monkeypatch.setenv("CACHE_TOOLS_PASSPHRASE", "another")
    wrong = invoke("sign", cache.url, "--key", key)
    assert wrong.exit_code == 2
    assert "wrong passphrase?" in wrong.stderr
    monkeypatch.delenv("CACHE_TOOLS_PASSPHRASE")
    assert invoke("sign", cache.url, "--key", key, input="a secret\n").exit_code == 0
    os.unlink(public_file(key))
    assert "--name NAME" in invoke("sign", cache.url, "--key", key, input="a secret\n").stderr
    assert "No such file" in invoke("sign", cache.url, "--key", tmp_path / "nothing", "--name", "x").stderr


def test_invalid_keys_are_refused(tmp_path: Path, cache: Storage) -> None:
    (tmp_path / "text").write_text("hello")
    assert "not a readable private key" in invoke("sign", cache.url, "--key", tmp_path / "text", "--name", "x").stderr
    for text, problem in [("00 Bob\n", "64 hex digits and a name"), ("", "0 keys, expected one line")]:
        (tmp_path / "bad.pub").write_text(text)
        refused = invoke("verify", cache.url, "--require-signature", tmp_path / "bad.pub")
        assert refused.exit_code == 2
        assert problem in refused.stderr
    with pytest.raises(UserError, match="name"):
        generate_key(tmp_path / "key", "two\nlines")
    assert not (tmp_path / "key").exists()


def test_trusted_names(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "trusted"
    assert json.loads(invoke("trust", "--json", "--trusted-keys", file).stdout) == {}
    assert "has no name" in invoke("trust", "1" * 64, "--trusted-keys", file).stderr
    assert invoke("trust", "1" * 64, "--name", "Ann B.", "--trusted-keys", file).exit_code == 0
    file.write_text("# mine\n" + file.read_text())
    assert invoke("trust", "1" * 64, "--name", "Ann B.", "--trusted-keys", file).exit_code == 0
    taken = invoke("trust", "2" * 64, "--name", "Ann B.", "--trusted-keys", file)
    assert taken.exit_code == 2
    assert "has another key, 1111" in taken.stderr
    assert invoke("trust", "2" * 64, "--name", "a\nb", "--trusted-keys", file).exit_code == 2
    assert file.read_text() == f"# mine\n{'1' * 64} Ann B.\n"
    assert invoke("trust", "2" * 64, "--name", "Bo", "--trusted-keys", file).exit_code == 0
    gone = invoke("trust", "--remove", "Ann B.", "--json", "--trusted-keys", file)
    assert json.loads(gone.stdout) == {"Bo": "2" * 64}
    assert file.read_text() == f"# mine\n{'2' * 64} Bo\n"
    assert invoke("trust", "--remove", "Ann B.", "--trusted-keys", file).exit_code == 2
    file.write_text(f"{'1' * 64} Bo\n{'2' * 64} Bo\n")
    assert "second key with the name" in invoke("trust", "--trusted-keys", file).stderr
