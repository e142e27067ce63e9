"""Search for caches by criteria."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from schemas.catalog_file import CatalogEntry
from schemas.errors import UserError
from support.forge import change_manifest
from support.hostile import write_hostile_cache
from support.models import tiny_tokenizer
from support.signed import public_key, sign
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest, up_to_date_manifest
from teacher_cache.shards.storage import Storage
from teacher_cache.tokenizer import describe_tokenizer
from tools.cache_tools_cli import main
from tools.finding.catalog import scan, write
from tools.finding.search import Wanted, tokenizer_fingerprint

TOKENIZERS = {"one": "1" * 64, "two": "2" * 64}


def make(url: str) -> None:
    for number, (name, fingerprint) in enumerate(TOKENIZERS.items(), 1):
        write_cache(f"{url}/{name}", random_shards([[10 * number]], seed=number))

        def change(tree: dict[str, Any], name: str = name, fingerprint: str = fingerprint) -> None:
            tree["teacher"].update(name=f"Model-{name.title()}", fingerprint=fingerprint[::-1].replace("1", "e"))
            tree["tokenizer"].update(fingerprint=fingerprint)
            tree["provenance"].update(licence="Apache-2.0" if name == "one" else "MIT", owner=f"team {name}")

        change_manifest(f"{url}/{name}", change)
    sign(f"{url}/two", 1, "Ann")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make(str(tmp_path))
    return tmp_path


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(main, ["search", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["one", "two"]),
        (["--teacher", "model-ONE"], ["one"]),
        (["--teacher", "eeeeee"], ["one"]),
        (["--teacher", "eeeee"], []),
        (["--tokenizer", "222222"], ["two"]),
        (["--tokenizer", "2" * 64], ["two"]),
        (["--tokenizer", "2" * 63 + "3"], []),
        (["--licence", "apache"], ["one"]),
        (["--owner", "TEAM"], ["one", "two"]),
        (["--owner", "team two", "--licence", "mit"], ["two"]),
        (["--owner", "team two", "--licence", "apache"], []),
        (["--signal", "logits"], ["one", "two"]),
        (["--signal", "logits", "--signal", "hidden"], []),
        (["--min-tokens", "10"], ["one", "two"]),
        (["--min-tokens", "11"], ["two"]),
        (["--signed-by", public_key(1)], ["two"]),
        (["--signed-by", public_key(2)], []),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_every_criterion_selects(root: Path, arguments: list[str], names: list[str]) -> None:
    assert [Path(match["url"]).name for match in run(str(root), *arguments)["matches"]] == names


def test_a_match_says_what_to_pull(root: Path) -> None:
    (match,) = run(f"{root}/", "--teacher", "one")["matches"]
    assert match["url"] == f"{root}/one"
    assert match["manifest_sha256"] == read_manifest(Storage(match["url"])).sha256
    shown = CliRunner().invoke(main, ["search", str(root), "--teacher", "one"])
    assert f"cache-tools pull {root}/one FOLDER --digest {match['manifest_sha256']}\n" in shown.stdout
    assert "1 of 2 caches" in shown.stdout


def test_the_digest_of_an_incomplete_cache_is_not_pinned(root: Path) -> None:
    write_cache(str(root / "part"), random_shards([[9], [4]]), commit=1)
    shown = CliRunner().invoke(main, ["search", str(root), "--teacher", "synthetic"])
    assert f"cache-tools pull {root}/part FOLDER\n" in shown.stdout
    assert not up_to_date_manifest(Storage(str(root / "part"))).complete


def test_the_catalogue_is_believed_unless_told_otherwise(root: Path) -> None:
    catalog = scan(str(root))
    write(Storage(str(root)), catalog.model_copy(update={"caches": catalog.caches[:1]}))
    listed, scanned = run(str(root)), run(str(root), "--scan")
    assert (listed["source"], len(listed["matches"])) == ("catalog", 1)
    assert (scanned["source"], len(scanned["matches"])) == ("scan", 2)


def test_an_empty_result_lists_what_exists(root: Path) -> None:
    result = CliRunner().invoke(main, ["search", str(root), "--teacher", "other"])
    assert result.exit_code == 0
    for part in ("no cache matches", "2 caches", "Model-One (1)", "logits (2)", "MIT (1)", "222222222222 (1)"):
        assert part in result.stdout
    assert run(str(root), "--teacher", "other")["matches"] == []


def test_a_tokenizer_folder_stands_for_its_fingerprint(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    fingerprint = describe_tokenizer(tokenizer).fingerprint
    assert tokenizer_fingerprint(str(folder)) == fingerprint
    change_manifest(str(root / "one"), lambda tree: tree["tokenizer"].update(fingerprint=fingerprint))
    (match,) = run(str(root), "--tokenizer", str(folder))["matches"]
    assert match["url"] == f"{root}/one"


def test_invalid_tokenizers_are_refused(tmp_path: Path) -> None:
    for value, problem in (("12345", "wanted a tokenizer's folder"), (str(tmp_path), "no tokenizer can be loaded")):
        with pytest.raises(UserError, match=problem):
            tokenizer_fingerprint(value)
    assert tokenizer_fingerprint("ABCDEF") == "abcdef"


@pytest.mark.parametrize("key", ["12", "G" * 64, public_key(1).upper()])
def test_a_key_is_given_in_full(root: Path, key: str) -> None:
    result = CliRunner().invoke(main, ["search", str(root), "--signed-by", key])
    assert (result.exit_code, "64 hex digits" in result.stderr) == (2, True)


def test_hostile_text_does_not_reach_the_terminal(root: Path) -> None:
    write_hostile_cache(root / "evil")
    result = CliRunner().invoke(main, ["search", str(root), "--scan"])
    assert result.exit_code == 0
    assert all(line.isprintable() for line in result.stdout.splitlines())
    (root / "catalog.json").write_text('{"\\u001b[2J": 1}')
    result = CliRunner().invoke(main, ["search", str(root)])
    assert result.exit_code == 2
    assert result.stderr.strip().isprintable()


def test_an_object_store(s3_url: str) -> None:
    make(s3_url)
    (match,) = run(s3_url, "--signed-by", public_key(1))["matches"]
    assert match["url"] == f"{s3_url}/two"
    assert read_manifest(Storage(match["url"])).sha256 == match["manifest_sha256"]
    assert CliRunner().invoke(main, ["catalog", s3_url]).exit_code == 0
    assert run(s3_url)["source"] == "catalog"


def test_an_entry_fits_empty_criteria(root: Path) -> None:
    entries: list[CatalogEntry] = scan(str(root)).caches
    assert all(Wanted().fits(entry) for entry in entries)
