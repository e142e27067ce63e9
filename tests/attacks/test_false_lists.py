"""Somebody, or a careless script, changes what a manifest lists; its digest and its sums are made to fit."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import UserError
from support.commands import run
from support.forge import Tree, change_manifest, follow_totals
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import MANIFEST, Storage
from tools.checking.verify import verify

LENGTHS = [[9, 5], [7, 3], [4]]


def twice(tree: Tree) -> None:
    tree["shards"].append(copy.deepcopy(tree["shards"][-1]))


def unit_twice(tree: Tree) -> None:
    tree["units"].insert(1, copy.deepcopy(tree["units"][0]))


def both_twice(tree: Tree) -> None:
    for name in ("units", "shards"):
        tree[name].append(copy.deepcopy(tree[name][-1]))


def other_spelling(tree: Tree) -> None:
    """The same number with one more zero is another file, of the same shard."""
    both_twice(tree)
    for name in ("units", "shards"):
        tree[name][-1]["name"] = "shard-0000002"


def falling(tree: Tree) -> None:
    for name in ("units", "shards"):
        tree[name].reverse()


def shards_falling(tree: Tree) -> None:
    tree["shards"].reverse()


def one_of_three(tree: Tree) -> None:
    del tree["shards"][1:]


def unplanned(tree: Tree) -> None:
    del tree["units"][1]


def other_tokens(tree: Tree) -> None:
    tree["units"][0]["tokens_file"] = tree["units"][1]["tokens_file"]


def no_logits(tree: Tree) -> None:
    for shard in tree["shards"]:
        del shard["files"]["logits"]


FALSE: dict[str, tuple[Callable[[Tree], None], str]] = {
    "a shard twice": (twice, "shards: names must rise, and shard-000002 follows shard-000002"),
    "a unit twice": (unit_twice, "units: names must rise, and shard-000000 follows shard-000000"),
    "both twice": (both_twice, "names must rise"),
    "a number spelled twice": (other_spelling, "units: names must rise, and shard-0000002 follows shard-000002"),
    "falling": (falling, "units: names must rise, and shard-000001 follows shard-000002"),
    "shards falling": (shards_falling, "shards: names must rise"),
    "complete with one of three": (one_of_three, "complete is true, but 1 of 3 units are committed"),
    "a shard that was not planned": (unplanned, "shards: shard-000001 is none of the planned units"),
    "another plan": (other_tokens, "shard-000000 has other samples, tokens or tokens file than its unit"),
    "a signal of no shard": (no_logits, "shard-000000 has no file of logits, which capture lists"),
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    write_cache(str(tmp_path / "cache"), random_shards(LENGTHS))
    return str(tmp_path / "cache")


@pytest.mark.parametrize("kind", FALSE)
def test_a_list_that_no_writer_makes(url: str, kind: str) -> None:
    """Lists contradict themselves or each other; whatever reads the manifest refuses it by name."""
    change, text = FALSE[kind]

    def forge(tree: Tree) -> None:
        change(tree)
        if "logits" in tree["shards"][0]["files"]:
            follow_totals(tree)

    change_manifest(url, forge)
    for read in (CacheReader, verify):
        with pytest.raises(UserError, match=rf"{MANIFEST}: .*{text}"):
            read(url)


def test_verify_exits_with_an_error_that_names_the_manifest(url: str) -> None:
    """The command's exit status of one shard listed twice, and of a complete cache that lacks two of three."""
    for change in (twice, one_of_three):
        sound = Storage(url).read(MANIFEST)
        change_manifest(url, lambda tree, change=change: (change(tree), follow_totals(tree)))
        done = run("cache-tools", "verify", url)
        assert done.returncode > 0
        assert MANIFEST in done.stderr
        assert "Traceback" not in done.stderr
        Storage(url).write(MANIFEST, sound)
    assert run("cache-tools", "verify", url).returncode == 0


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
def test_files_of_a_cache_that_is_being_made(tmp_path: Path, quick: bool) -> None:
    """Of an unfinished cache a planned tar, a committed tar, or a byte of either is gone."""
    url = str(tmp_path / "cache")
    write_cache(url, random_shards(LENGTHS), commit=1)
    assert not read_manifest(Storage(url)).complete
    assert verify(url, quick).problems == []
    for number, signal in ((0, "tokens"), (0, "logits"), (1, "tokens"), (2, "tokens")):
        path = Path(url) / f"shard-00000{number}.{signal}.tar"
        sound = path.read_bytes()
        path.unlink()
        assert any(path.name in problem for problem in verify(url, quick).problems)
        path.write_bytes(sound[:-1])
        assert any(path.name in problem for problem in verify(url, quick).problems)
        path.write_bytes(sound[:-1] + b"x")
        assert quick or any(path.name in problem for problem in verify(url).problems)
        path.write_bytes(sound)
    assert verify(url, quick).problems == []


def test_all_commands_name_the_cache_by_one_digest(url: str, tmp_path: Path) -> None:
    """A manifest is written anew, with the same content in other white space: one digest names it in every place."""
    before = read_manifest(Storage(url)).digest()
    change_manifest(url, lambda tree: None)
    text = json.loads((Path(url) / MANIFEST).read_text())
    digest = text["sha256"]
    assert digest != before
    assert json.loads(run("cache-tools", "inspect", url, "--json").stdout)["manifest_digest"] == digest
    assert json.loads(run("cache-tools", "stats", url, "--json").stdout)["manifest_digest"] == digest
    card = run("cache-tools", "card", url).stdout + "".join(p.read_text() for p in Path(url).glob("CACHE_CARD.md"))
    assert digest in card
    assert before not in card
    for wanted, status in ((digest, 0), (before, 2)):
        done = run("cache-tools", "pull", url, tmp_path / wanted[:8], "--digest", wanted)
        assert done.returncode == status, done.stderr
    assert CacheReader(url).manifest.digest() == digest
    assert CacheReader(str(tmp_path / digest[:8])).manifest.digest() == digest
