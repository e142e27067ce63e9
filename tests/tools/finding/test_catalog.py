"""A catalogue agrees with the manifests, and survives broken ones."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner

from schemas.cache_config import LogitsCapture
from schemas.catalog_file import Catalog
from schemas.derivation import Derivation
from schemas.errors import UserError
from support.forge import change_manifest
from support.hostile import write_hostile_cache
from support.signed import SIGNED_AT, public_key, sign
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest, write_manifest
from teacher_cache.shards.storage import Storage
from tools.cache_tools_cli import main
from tools.finding import catalog as module
from tools.finding.catalog import read, scan, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cache(str(tmp_path / "small"), random_shards([[9, 4]]))
    capture = LogitsCapture(policy="nucleus", k=5, mass=0.5)
    write_cache(str(tmp_path / "team" / "large"), random_shards([[30], [20]], capture=capture), capture=capture)
    return tmp_path


def broken_caches(url: str) -> None:
    """Manifests: no JSON, tampered, from the future, with absurd totals, with a hostile key."""
    Storage(f"{url}/b/no-json").write("manifest.json", b"\x00\x1b[2J not json")
    for name in ("changed", "future", "absurd", "key"):
        write_cache(f"{url}/b/{name}", random_shards([[5]]))
    storage = Storage(f"{url}/b/changed")
    storage.write("manifest.json", storage.read("manifest.json").replace(b'"synthetic"', b'"synthetik"'))
    change_manifest(f"{url}/b/future", lambda tree: tree.update(format_version=9))
    most = 2**53 - 1
    change_manifest(f"{url}/b/absurd", lambda tree: tree["totals"].update(bytes={"tokens": most, "logits": most}))
    change_manifest(f"{url}/b/key", lambda tree: tree.update({"\x1b[2J<script>": 1}))


REASONS = {
    "b/absurd": "bytes: Input should be less than",
    "b/changed": "modified after it was written",
    "b/future": "format_version 9 is newer",
    "b/key": "unknown key",
    "b/no-json": "Invalid JSON",
}


def test_an_entry_says_what_the_manifest_says(root: Path) -> None:
    catalog = scan(str(root))
    assert [entry.path for entry in catalog.caches] == ["small", "team/large"]
    entry = catalog.caches[1]
    storage = Storage(str(root / "team" / "large"))
    manifest = read_manifest(storage)
    assert entry.manifest_sha256 == manifest.sha256 == manifest.digest()
    assert (entry.samples, entry.tokens, entry.complete, entry.derived) == (2, 50, True, None)
    assert entry.teacher.model_dump() == manifest.teacher.model_dump(include={*entry.teacher.model_dump()})
    assert entry.tokenizer == manifest.tokenizer
    assert entry.bytes_by_signal == manifest.totals.bytes
    assert entry.bytes == sum(storage.sizes().values()) - storage.size("manifest.json")
    assert entry.capture == {"logits": "nucleus of 0.5, at most 5; temperatures 1, 3; rows: loss_mask"}
    assert entry.written_at is not None
    assert entry.written_at.timestamp() == int((root / "team" / "large" / "manifest.json").stat().st_mtime)


def test_signatures_and_history(root: Path) -> None:
    sign(str(root / "small"), 1, "Ann")
    sign(str(root / "small"), 2, "Bob", signer="Eve")
    storage = Storage(str(root / "team" / "large"))
    derived = Derivation(action="repack", sources=[])
    write_manifest(storage, read_manifest(storage).model_copy(update={"derived": derived}))
    small, large = scan(str(root)).caches
    assert [(one.signer, one.public_key, one.signed_at) for one in small.signatures] == [
        ("Ann", public_key(1), SIGNED_AT)
    ]
    assert (small.derived, large.derived, large.signatures) == (None, "repack", [])


def test_what_is_written_is_read(root: Path) -> None:
    assert read(str(root)) is None
    catalog = scan(str(root))
    assert write(Storage(str(root)), catalog) == [f"{root}/catalog.json", f"{root}/catalog.html"]
    assert read(str(root)) == catalog
    assert sorted(path.name for path in root.iterdir()) == ["catalog.html", "catalog.json", "small", "team"]
    assert [entry.path for entry in scan(str(root)).caches] == ["small", "team/large"]


def test_broken_caches_are_problems(root: Path) -> None:
    broken_caches(str(root))
    catalog = scan(str(root))
    assert [entry.path for entry in catalog.caches] == ["small", "team/large"]
    assert [problem.path for problem in catalog.problems] == list(REASONS)
    for problem in catalog.problems:
        assert REASONS[problem.path] in problem.reason
        assert str(root) not in problem.reason
        assert problem.reason.isprintable()


def test_a_large_manifest_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", (root / "small" / "manifest.json").stat().st_size)
    catalog = scan(str(root))
    assert [entry.path for entry in catalog.caches] == ["small"]
    assert [problem.path for problem in catalog.problems] == ["team/large"]
    assert "bytes, wanted at most" in catalog.problems[0].reason


def test_hostile_text_is_cut_and_on_one_line(root: Path) -> None:
    write_hostile_cache(root / "evil")
    sign(str(root / "evil"), 1, "<b>\u202eAnn")
    write(Storage(str(root)), scan(str(root)))
    assert (root / "catalog.json").stat().st_size < 20_000
    catalog = read(str(root))
    assert catalog is not None
    entry = catalog.caches[0]
    assert entry.path == "evil"
    assert entry.notes.endswith("…")
    assert entry.signatures[0].signer == r"<b>\u202eAnn"
    for text in (entry.notes, entry.licence, entry.owner, entry.teacher.name, entry.teacher.architecture):
        assert text.isprintable()


def test_an_incomplete_cache_is_listed_as_such(root: Path) -> None:
    write_cache(str(root / "part"), random_shards([[9], [4]]), commit=1)
    entry = next(entry for entry in scan(str(root)).caches if entry.path == "part")
    assert (entry.complete, entry.samples) == (False, 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "written_at"),
        ("[]", "catalog.json"),
        ("[" * 100_000, "catalog.json"),
        ('{"\x1b[2J": 1}', "catalog.json"),
        (" " * 2000, "2000 bytes"),
    ],
    ids=["empty", "list", "deep", "key", "large"],
)
def test_an_invalid_catalogue_is_refused(root: Path, text: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if problem == "2000 bytes":
        monkeypatch.setattr(module, "MAX_CATALOG_BYTES", 1000)
    (root / "catalog.json").write_text(text)
    with pytest.raises(UserError, match=problem) as error:
        read(str(root))
    assert "--scan" in str(error.value)
    assert str(error.value).isprintable()


def test_a_catalogue_of_a_newer_format_is_refused(root: Path) -> None:
    catalog = scan(str(root)).model_copy(update={"catalog_version": 2})
    write(Storage(str(root)), catalog)
    with pytest.raises(UserError, match="catalog_version 2, wanted at most 1"):
        read(str(root))


def test_the_command(root: Path) -> None:
    broken_caches(str(root))
    run = CliRunner().invoke
    dry = run(main, ["catalog", str(root), "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert not (root / "catalog.json").exists()
    assert "2 caches, 5 that cannot be read" in dry.stdout
    for path, reason in REASONS.items():
        assert any(line.startswith(path) and reason in line for line in dry.stdout.splitlines())
    wet = run(main, ["catalog", str(root), "--json"])
    assert wet.exit_code == 0
    assert Catalog.model_validate_json(wet.stdout) == read(str(root))
    assert [entry["path"] for entry in json.loads(wet.stdout)["caches"]] == ["small", "team/large"]
    shallow = run(main, ["catalog", str(root), "--depth", "1", "--json"])
    assert [entry["path"] for entry in json.loads(shallow.stdout)["caches"]] == ["small"]
    nothing = run(main, ["catalog", str(root / "nothing")])
    assert (nothing.exit_code, "empty or missing" in nothing.stderr) == (2, True)
    shutil.rmtree(root)
    root.mkdir()
    assert run(main, ["catalog", str(root)]).exit_code == 0
    assert "0 caches" in run(main, ["catalog", str(root)]).stdout


def test_an_object_store(s3_url: str) -> None:
    write_cache(f"{s3_url}/small", random_shards([[9, 4]]))
    write_cache(f"{s3_url}/team/large", random_shards([[30], [20]]))
    write_hostile_cache(f"{s3_url}/evil")
    broken_caches(s3_url)
    store = fsspec.filesystem("s3")
    store.pipe_file(f"{s3_url}/<script>alert(1)</script>/manifest.json", b"{}")
    sign(f"{s3_url}/small", 1, "Ann")
    sign(f"{s3_url}/team/large", 2, "Bob", signature="0" * 128)
    result = CliRunner().invoke(main, ["catalog", s3_url])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    catalog = read(s3_url)
    assert catalog is not None
    assert [entry.path for entry in catalog.caches] == ["evil", "small", "team/large"]
    assert [[one.signer for one in entry.signatures] for entry in catalog.caches] == [[], ["Ann"], []]
    assert [problem.path for problem in catalog.problems] == list(REASONS)
    assert catalog.left_out == 1
    assert store.cat_file(f"{s3_url}/catalog.html").startswith(b"<!doctype html>")
