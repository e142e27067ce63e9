"""The union of caches: its samples, which files are shared with the sources, and refusals."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError, UserError
from support.forge import change_index, change_manifest, follow_totals
from support.synthetic import Pair, random_shards, write_cache
from teacher_cache.shards import shard_table
from teacher_cache.shards.marks import mark_name, read_manifest, tar_name
from teacher_cache.shards.new_place import UNDER_WAY
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.cache_tools_cli import main
from tools.checking.verify import verify
from tools.making import merge as module
from tools.making.derived import source_of
from tools.making.merge import merge

SIGNALS = ("tokens", "logits")


def samples(n: int, seed: int = 0) -> list[Pair]:
    """Samples with different keys."""
    (pairs,) = random_shards([[12 + i for i in range(n)]], seed=seed)
    return pairs


def payloads(url: str) -> dict[str, tuple[bytes, ...]]:
    """Key → decoded signals."""
    reader = CacheReader(url)
    return {key: tuple(reader.payload(i, signal) for signal in SIGNALS) for i, key in enumerate(reader.keys)}


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.tar")}


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two caches of two shards each, all of whose samples differ."""
    first, second = samples(5), samples(4, seed=1)
    write_cache(str(tmp_path / "a"), [first[:2], first[2:]])
    write_cache(str(tmp_path / "b"), [second[:3], second[3:]])
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_shards_are_renumbered_and_their_tars_are_the_sources_files(two: list[str], tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = merge(two, str(tmp_path / "all"), advance=lambda done, total: steps.append((done, total)))
    assert (report.sources, report.shards, report.samples, report.duplicates) == (2, 4, 9, 0)
    assert (report.tars_shared, report.tars_copied, report.shards_rewritten) == (8, 0, 0)
    assert verify(str(tmp_path / "all")).problems == []
    assert CacheReader(str(tmp_path / "all")).keys == [key for url in two for key in CacheReader(url).keys]
    assert payloads(str(tmp_path / "all")) == payloads(two[0]) | payloads(two[1])
    merged, a, b = (inodes(tmp_path / name) for name in ("all", "a", "b"))
    assert merged["shard-000001.logits.tar"] == a["shard-000001.logits.tar"]
    assert merged["shard-000002.tokens.tar"] == b["shard-000000.tokens.tar"]
    assert set(merged.values()) == set(a.values()) | set(b.values())
    assert steps == [(n, 8) for n in range(1, 9)]
    assert not (tmp_path / "all" / UNDER_WAY).exists()


def test_the_manifest_tells_what_the_cache_was_made_of(two: list[str], tmp_path: Path) -> None:
    change_manifest(two[0], lambda tree: tree["provenance"].update(licence="CC-BY-4.0", owner="us"))
    change_manifest(two[1], lambda tree: tree["provenance"].update(licence="MIT", owner="us"))
    change_manifest(two[1], lambda tree: tree["corpus"].update(fingerprint="d" * 64))
    change_manifest(two[1], lambda tree: tree["corpus"]["settings"].update(max_tokens=100, min_tokens=9, clean=False))
    change_manifest(two[1], lambda tree: tree.update(tokens_per_shard=10_000))
    merge(two, str(tmp_path / "all"))
    merge([str(tmp_path / "all"), two[0]], str(tmp_path / "more"))
    a, b, both, more = (read_manifest(Storage(url)) for url in (*two, *(str(tmp_path / n) for n in ("all", "more"))))
    assert both.derived is not None
    assert both.derived.action == "merge"
    assert both.derived.sources == [source_of(a), source_of(b)]
    assert set(both.tables) == set(a.tables) | set(b.tables)
    assert len(both.tables) == 2
    assert both.tokens_per_shard == 10_000
    assert (both.provenance.licence, both.provenance.owner) == ("CC-BY-4.0; MIT", "us")
    assert both.corpus.counts.documents == 9
    assert both.corpus.settings.sources == a.corpus.settings.sources + b.corpus.settings.sources
    assert (both.corpus.settings.max_tokens, both.corpus.settings.min_tokens) == (2048, 2)
    assert both.corpus.settings.clean is False
    assert both.corpus.fingerprint not in (a.corpus.fingerprint, b.corpus.fingerprint)
    assert more.derived is not None
    assert more.derived.sources[0].derived == both.derived
    assert more.derived.duplicates_dropped == a.totals.samples


def test_parts_of_one_corpus_are_counted_once(two: list[str], tmp_path: Path) -> None:
    corpus = read_manifest(Storage(two[0])).corpus
    change_manifest(two[1], lambda tree: tree.update(corpus=corpus.model_dump()))
    merge(two, str(tmp_path / "all"))
    assert read_manifest(Storage(str(tmp_path / "all"))).corpus == corpus


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_union_holds_each_sample_once_as_its_first_source_has_it(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("union")
    pool = samples(7)
    urls: list[str] = []
    wanted: dict[str, tuple[bytes, ...]] = {}
    order: list[str] = []
    for number in range(data.draw(st.integers(1, 3))):
        chosen = data.draw(st.lists(st.sampled_from(pool), min_size=1, unique_by=lambda pair: pair[0].key))
        cuts = data.draw(st.sets(st.integers(1, len(chosen)), max_size=3)) | {len(chosen)}
        bounds = [0, *sorted(cuts)]
        shards = [chosen[start:stop] for start, stop in itertools.pairwise(bounds)]
        urls.append(str(folder / str(number)))
        write_cache(urls[-1], shards)
        order += [key for key in payloads(urls[-1]) if key not in wanted]
        wanted = payloads(urls[-1]) | wanted
    report = merge(urls, str(folder / "all"))
    assert payloads(str(folder / "all")) == wanted
    assert CacheReader(str(folder / "all")).keys == order
    assert report.samples == len(order)
    assert report.samples + report.duplicates_dropped == sum(len(CacheReader(url)) for url in urls)
    assert report.shards + report.shards_left_out == sum(len(CacheReader(url).shard_sizes) for url in urls)
    assert verify(str(folder / "all")).problems == []


def test_only_shards_with_a_duplicate_are_rewritten(tmp_path: Path) -> None:
    pool = samples(8)
    write_cache(str(tmp_path / "a"), [pool[:4]])
    write_cache(str(tmp_path / "b"), [pool[4:6], [pool[6], pool[1], pool[7]], [pool[0], pool[2]]])
    report = merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "all"))
    assert (report.shards, report.shards_rewritten, report.shards_left_out) == (3, 1, 1)
    assert (report.duplicates, report.duplicates_dropped, report.tars_shared) == (3, 3, 4)
    old = set(inodes(tmp_path / "a").values()) | set(inodes(tmp_path / "b").values())
    new = {name for name, inode in inodes(tmp_path / "all").items() if inode not in old}
    assert new == {"shard-000002.tokens.tar", "shard-000002.logits.tar"}
    assert CacheReader(str(tmp_path / "all")).keys[-2:] == [pool[6][0].key, pool[7][0].key]


def test_duplicates_within_a_source_are_found(two: list[str], tmp_path: Path) -> None:
    merge([two[0], two[0]], str(tmp_path / "twice"), "keep")
    twice = CacheReader(str(tmp_path / "twice"))
    assert twice.keys == 2 * CacheReader(two[0]).keys
    assert twice.manifest.derived is not None
    assert twice.manifest.derived.duplicates_dropped == 0
    report = merge([str(tmp_path / "twice")], str(tmp_path / "once"))
    assert (report.samples, report.duplicates_dropped, report.shards_left_out) == (5, 5, 2)


def test_duplicates_are_refused_if_so_wished(two: list[str], tmp_path: Path) -> None:
    pool = samples(5)
    write_cache(str(tmp_path / "c"), [samples(3, seed=2), [*samples(1, seed=3), pool[3], pool[1]]])
    with pytest.raises(UserError) as refusal:
        merge([two[1], two[0], str(tmp_path / "c")], str(tmp_path / "all"), "refuse")
    assert f"2 duplicate samples, the first of them {pool[3][0].key}" in str(refusal.value)
    assert f"{two[0]}/shard-000001.json and {tmp_path}/c/shard-000001.json" in str(refusal.value)
    assert not (tmp_path / "all").exists()
    assert merge(two, str(tmp_path / "all"), "refuse").samples == 9


DIFFERENT: dict[str, Callable[[dict], object]] = {
    "teacher.fingerprint": lambda tree: tree["teacher"].update(fingerprint="e" * 64),
    "teacher.dtype": lambda tree: tree["teacher"].update(dtype="bfloat16"),
    "tokenizer.fingerprint": lambda tree: tree["tokenizer"].update(fingerprint="e" * 64),
    "codec.scalar_steps_per_nat": lambda tree: tree["codec"].update(scalar_steps_per_nat=512),
    "capture.logits.positions": lambda tree: tree["capture"]["logits"].update(positions="all"),
}


@pytest.mark.parametrize("key", DIFFERENT)
def test_caches_that_do_not_fit_are_refused(two: list[str], tmp_path: Path, key: str) -> None:
    change_manifest(two[1], DIFFERENT[key])
    with pytest.raises(UserError, match=f"{key}: '?\\w+'? in {two[0]}, '?\\w+'? in {two[1]}") as refusal:
        merge(two, str(tmp_path / "all"))
    assert len(str(refusal.value).split(f" in {two[1]}")) == 2  # nothing else differs
    assert not (tmp_path / "all").exists()


def test_all_differences_are_named_with_both_values(two: list[str], tmp_path: Path) -> None:
    capture, codec = LogitsCapture(k=4), CodecConfig(logprobs="float16")
    write_cache(str(tmp_path / "c"), random_shards([[9]], capture=capture), capture=capture, codec=codec)
    result = CliRunner().invoke(main, ["merge", *two, str(tmp_path / "c"), str(tmp_path / "all")])
    assert result.exit_code == 2
    assert f"capture.logits.k: 8 in {two[0]}, 4 in {tmp_path}/c" in result.stderr
    assert f"codec.logprobs: 'steps' in {two[0]}, 'float16' in {tmp_path}/c" in result.stderr


def test_the_name_of_the_teacher_may_differ(two: list[str], tmp_path: Path) -> None:
    change_manifest(two[1], lambda tree: tree["teacher"].update(name="the same", revision="main"))
    assert merge(two, str(tmp_path / "all")).samples == 9


def damage_index(folder: Path) -> str:
    name = mark_name("shard-000001")
    data = bytearray((folder / name).read_bytes())
    data[30] ^= 1
    (folder / name).write_bytes(data)
    return name


def truncate_tar(folder: Path) -> str:
    name = tar_name("shard-000001", "logits")
    os.truncate(folder / name, 100)
    return name


def remove_table(folder: Path) -> str:
    (path,) = (folder / "tables").iterdir()
    path.unlink()
    return f"tables/{path.name}"


def damage_table(folder: Path) -> str:
    (path,) = (folder / "tables").iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)
    return f"tables/{path.name}"


@pytest.mark.parametrize("damage", [damage_index, truncate_tar, remove_table, damage_table])
def test_a_damaged_source_is_refused_with_the_file_named(
    two: list[str], tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    name = damage(tmp_path / "b")
    with pytest.raises(CorruptCacheError, match=f"^{two[1]}/{name}"):
        merge(two, str(tmp_path / "all"))
    assert not (tmp_path / "all").exists()


def flip_payload(folder: Path) -> str:
    """Change a byte of the last sample of the second shard."""
    name = tar_name("shard-000001", "logits")
    member = json.loads((folder / "shard-000001.json").read_bytes())["signals"]["logits"]
    with (folder / name).open("r+b") as file:
        file.seek(member["offsets"][-1] + member["sizes"][-1] - 1)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return name


def test_a_damaged_payload_that_is_read_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    pool = samples(6)
    write_cache(str(tmp_path / "a"), [pool[:4]])
    write_cache(str(tmp_path / "b"), [pool[4:5], [pool[1], pool[5]]])
    name = flip_payload(tmp_path / "b")
    with pytest.raises(CorruptCacheError, match=f"{name}: sample {pool[5][0].key}"):
        merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "all"))
    assert Storage(str(tmp_path / "all")).names() == []


def test_an_incomplete_cache_is_refused(two: list[str], tmp_path: Path) -> None:
    write_cache(str(tmp_path / "c"), random_shards([[9], [8]], seed=5), commit=1)
    with pytest.raises(UserError, match=r"c: the cache is not complete: 1 of 2 shards .* `cache-tools subset`"):
        merge([*two, str(tmp_path / "c")], str(tmp_path / "all"))


def test_a_large_union_has_a_shard_table_and_so_may_its_sources(
    two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_table, "MAX_LISTED_UNITS", 3)
    third = samples(3, seed=2)
    write_cache(str(tmp_path / "c"), [[pair] for pair in third])
    merge(two, str(tmp_path / "all"))
    assert read_manifest(Storage(str(tmp_path / "all"))).shard_table is not None
    report = merge([str(tmp_path / "all"), str(tmp_path / "c")], str(tmp_path / "more"))
    assert report.shards == 7
    assert verify(str(tmp_path / "more")).problems == []
    assert set(payloads(str(tmp_path / "more"))) == set(payloads(two[0])) | set(payloads(two[1])) | {
        tokens.key for tokens, _ in third
    }
    history = read_manifest(Storage(str(tmp_path / "more"))).derived
    assert history is not None
    assert history.sources[0].manifest_sha256 == read_manifest(Storage(str(tmp_path / "all"))).sha256


def test_signals_that_a_source_no_longer_has_are_left_out_of_indexes(two: list[str], tmp_path: Path) -> None:
    """A subset may have kept indexes that list signals it does not have."""

    def name_more(tree: dict) -> None:
        tree["signals"]["hidden"] = tree["signals"]["logits"]

    for url in two:
        change_index(url, name_more)
        change_manifest(url, lambda tree: (tree["shards"][0]["files"].pop("hidden"), follow_totals(tree)))
    merge(two, str(tmp_path / "all"))
    assert verify(str(tmp_path / "all")).problems == []
    assert "hidden" not in json.loads((tmp_path / "all" / "shard-000000.json").read_bytes())["signals"]


@pytest.mark.parametrize("left", range(3))
def test_an_interrupted_merge_is_done_again(
    two: list[str], tmp_path: Path, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after some shards, without clean-up."""
    calls = iter(range(100))

    class Killed(BaseException):
        pass

    def killed(*arguments: object) -> object:
        if next(calls) >= left:
            raise Killed
        return write(*arguments)

    write = module._write_shard
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_shard", killed)
        patch.setattr("teacher_cache.shards.new_place.clear", lambda storage: None)
        patch.setattr(Storage, "delete", lambda storage, name: None)
        with pytest.raises(Killed):
            merge(two, str(tmp_path / "all"))
    assert (tmp_path / "all" / UNDER_WAY).exists()
    assert CliRunner().invoke(main, ["verify", str(tmp_path / "all")]).exit_code == 2
    (tmp_path / "all" / "notes.txt").write_text("mine")
    merge(two, str(tmp_path / "all"))
    assert verify(str(tmp_path / "all")).problems == []
    assert (tmp_path / "all" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "all" / UNDER_WAY).exists()


def test_the_order_of_sources_is_kept_in_a_store(two: list[str], s3_url: str, tmp_path: Path) -> None:
    """From disk to a store by upload, and within a store by the store's own copy."""
    up = merge(two, f"{s3_url}/all")
    assert (up.tars_shared, up.tars_copied) == (0, 8)
    write_cache(f"{s3_url}/c", [samples(3, seed=2)])
    within = merge([f"{s3_url}/all", f"{s3_url}/c"], f"{s3_url}/more")
    assert (within.tars_shared, within.tars_copied) == (10, 0)
    assert verify(f"{s3_url}/more").problems == []
    keys = [key for url in (*two, f"{s3_url}/c") for key in CacheReader(url).keys]
    assert CacheReader(f"{s3_url}/more").keys == keys
    down = merge([f"{s3_url}/more"], str(tmp_path / "down"))
    assert down.tars_copied == 10
    assert payloads(str(tmp_path / "down")) == payloads(f"{s3_url}/more")


def test_the_command_reports_counts(two: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["merge", *two, two[0], str(tmp_path / "all"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["sources"], report["samples"], report["duplicates_dropped"]) == (3, 9, 5)
    again = CliRunner().invoke(main, ["merge", *two, str(tmp_path / "all")])
    assert (again.exit_code, "a cache already exists" in again.stderr) == (2, True)
    assert np.all(CacheReader(str(tmp_path / "all")).num_tokens > 0)
