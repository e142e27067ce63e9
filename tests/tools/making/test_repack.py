"""The same samples in other shards, with fewer entries, or coarser: what stays bit-identical, and refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import CacheConfig, CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError, UserError
from schemas.load import validate
from schemas.manifest import ShardIndex
from support.forge import change_index, change_payload, with_sections
from support.models import write_random_teacher, write_text_corpus
from support.synthetic import random_shards, write_cache
from support.workspace import cache_tree
from teacher_cache.job import run
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.cache_tools_cli import main
from tools.checking.verify import verify
from tools.making.derived import source_of
from tools.making.merge import merge
from tools.making.recode import MOST_STEPS
from tools.making.repack import Changes, grouped, repack

LENGTHS = [[20, 7, 31], [11, 40], [25]]
EVERYTHING: dict[str, Any] = {
    "logits": {"k": 8, "temperatures": [1.0, 3.0]},
    "hidden": {"layers": [1, 2], "positions": {"every": 3}},
    "attention": {"heads": 2, "positions": {"every": 4}},
    "draws": {"n": 5, "temperatures": [1.0, 3.0], "region": "all"},
    "final": {},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("plain"))
    write_cache(url, random_shards(LENGTHS))
    return url


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache with all signals and several shards."""
    folder = tmp_path_factory.mktemp("everything")
    teacher, corpus = write_random_teacher(folder / "teacher"), write_text_corpus(folder / "corpus", documents=4)
    tree = cache_tree(teacher, corpus, folder / "cache", capture=EVERYTHING, tokens_per_shard=100)
    run(validate(CacheConfig, tree, "test"))
    return str(folder / "cache")


def payloads(url: str, *signals: Any) -> dict[str, list[bytes]]:
    reader = CacheReader(url, signals)
    return {key: [reader.payload(i, signal) for signal in signals] for i, key in enumerate(reader.keys)}


@pytest.mark.parametrize(("tokens", "sizes"), [(1, [1] * 6), (50, [3, 2, 1]), (58, [3, 3]), (10**6, [6])])
def test_shards_of_another_size_hold_the_same_payloads(
    plain: str, tmp_path: Path, tokens: int, sizes: list[int]
) -> None:
    steps: list[tuple[int, int]] = []
    report = repack(plain, f"{tmp_path}/b", Changes(tokens), lambda done, total: steps.append((done, total)))
    assert (report.shards_before, report.shards, report.samples, report.coded_anew) == (3, len(sizes), 6, False)
    reader = CacheReader(f"{tmp_path}/b")
    assert reader.shard_sizes.tolist() == sizes
    assert reader.keys == CacheReader(plain).keys
    assert payloads(f"{tmp_path}/b", "tokens", "logits") == payloads(plain, "tokens", "logits")
    assert verify(f"{tmp_path}/b").problems == []
    assert steps == [(done, 6) for done in np.cumsum(sizes).tolist()]
    base, made = read_manifest(Storage(plain)), reader.manifest
    assert (made.tables, made.codec, made.capture, made.corpus) == (base.tables, base.codec, base.capture, base.corpus)
    assert made.tokens_per_shard == tokens
    assert made.derived is not None
    assert (made.derived.action, made.derived.sources) == ("repack", [source_of(base)])
    assert made.derived.notes == f"tokens_per_shard: {base.tokens_per_shard} → {tokens}"


def test_a_cache_of_all_signals_is_cut_anew(everything: str, tmp_path: Path) -> None:
    repack(everything, f"{tmp_path}/b", Changes(tokens_per_shard=10**6))
    assert len(CacheReader(f"{tmp_path}/b").shard_sizes) == 1 < len(CacheReader(everything).shard_sizes)
    signals = ("tokens", "logits", "draws", "final", "hidden", "attention")
    assert payloads(f"{tmp_path}/b", *signals) == payloads(everything, *signals)
    assert verify(f"{tmp_path}/b").problems == []
    (head,) = (Path(url) / "head.safetensors" for url in (f"{tmp_path}/b",))
    assert head.samefile(Path(everything) / "head.safetensors")


@pytest.mark.parametrize("tokens", [None, 60])
def test_fewer_entries_are_the_first_of_the_old_ones(everything: str, tmp_path: Path, tokens: int | None) -> None:
    report = repack(everything, f"{tmp_path}/b", Changes(tokens, k=3))
    signals = ("tokens", "logits", "draws", "final", "hidden", "attention")
    old, new = CacheReader(everything, signals), CacheReader(f"{tmp_path}/b", signals)
    assert new.manifest.capture.logits.k == 3
    assert "capture.logits.k: 8 → 3" in report.changes
    assert new.keys == old.keys
    for i in range(len(old)):
        before, after = old.read_logits(i), new.read_logits(i)
        assert np.array_equal(after.ids, before.ids[:, :3])
        assert np.array_equal(after.logprobs, before.logprobs[:, :3])
        for name in ("positions", "next_logprob", "log_partition"):
            assert np.array_equal(getattr(after, name), getattr(before, name), equal_nan=True)
        assert np.array_equal(np.sort(new.read_draws(i).ids), np.sort(old.read_draws(i).ids))
        assert np.array_equal(new.read_draws(i).entropy, old.read_draws(i).entropy)
        for signal in ("tokens", "final", "hidden", "attention"):
            assert new.payload(i, signal) == old.payload(i, signal)
    assert verify(f"{tmp_path}/b").problems == []
    if tokens is None:
        assert report.bytes < report.bytes_before
        assert new.shard_sizes.tolist() == old.shard_sizes.tolist()


@settings(max_examples=15, deadline=None)
@given(k=st.integers(1, 8), policy=st.sampled_from(["top_k", "nucleus"]), dtype=st.sampled_from(["steps", "float32"]))
def test_any_number_of_first_entries(tmp_path_factory: Any, k: int, policy: Any, dtype: Any) -> None:
    folder = tmp_path_factory.mktemp("k")
    capture = LogitsCapture(policy=policy, k=8, mass=0.5)
    codec = CodecConfig(logprobs=dtype)
    write_cache(f"{folder}/a", random_shards([[20, 9], [14]], capture=capture), capture=capture, codec=codec)
    repack(f"{folder}/a", f"{folder}/b", Changes(k=k, recode=True))
    old, new = CacheReader(f"{folder}/a"), CacheReader(f"{folder}/b")
    for i in range(3):
        before, after = old.read_logits(i), new.read_logits(i)
        assert np.array_equal(after.counts, np.minimum(before.counts, k))
        assert np.array_equal(after.ids, before.ids[:, :k])
        assert np.array_equal(after.logprobs, before.logprobs[:, :k])
        assert np.array_equal(after.next_logprob, before.next_logprob, equal_nan=True)
        assert np.array_equal(after.log_partition, before.log_partition)


@pytest.mark.parametrize(
    ("stored", "changes", "error"),
    [
        ({"logprobs": "float32"}, Changes(logprobs="float16"), 2**-11),
        ({"logprobs": "float32"}, Changes(logprobs="bfloat16"), 2**-8),
        ({"logprobs": "float16"}, Changes(logprobs="bfloat16"), 2**-8),
        ({"logprobs": "float32"}, Changes(logprobs="steps", steps_per_nat=512), None),
        ({"logprobs": "float16"}, Changes(logprobs="steps"), None),
        ({"logprobs": "bfloat16"}, Changes(logprobs="steps", steps_per_nat=4), None),
        ({}, Changes(steps_per_nat=5), None),
    ],
)
def test_coarser_values_are_the_old_ones_rounded(
    tmp_path: Path, stored: dict[str, Any], changes: Changes, error: float | None
) -> None:
    write_cache(f"{tmp_path}/a", random_shards(LENGTHS), codec=CodecConfig(**stored))
    repack(f"{tmp_path}/a", f"{tmp_path}/b", changes)
    old, new = CacheReader(f"{tmp_path}/a"), CacheReader(f"{tmp_path}/b")
    assert verify(f"{tmp_path}/b").problems == []
    for i in range(len(old)):
        before, after = old.read_logits(i), new.read_logits(i)
        assert np.array_equal(after.ids, before.ids)
        limit = 0.5 / new.manifest.codec.logprob_steps_per_nat if error is None else error * -before.logprobs
        assert (np.abs(after.logprobs - before.logprobs) <= limit + 1e-6).all()
        assert not np.array_equal(after.logprobs, before.logprobs)


@pytest.mark.parametrize(
    ("stored", "changes", "message"),
    [
        ({}, Changes(k=9), "capture.logits.k: 9, wanted at most 8"),
        ({}, Changes(steps_per_nat=32), "32, wanted at most 16: the cache stores steps of 1/16 nat"),
        ({}, Changes(logprobs="float32"), "not coarser than the cache's steps of 1/16 nat"),
        ({"logprobs": "bfloat16"}, Changes(logprobs="float16"), "not coarser than the cache's bfloat16"),
        (
            {"logprobs": "bfloat16"},
            Changes(logprobs="steps"),
            "at most 4: the cache stores bfloat16; lower --steps-per-nat",
        ),
        ({"logprobs": "float32"}, Changes(steps_per_nat=8), "stored as float32, without steps"),
        ({}, Changes(), "nothing to change"),
    ],
)
def test_more_entries_or_precision_than_stored_are_refused(
    tmp_path: Path, stored: dict[str, Any], changes: Changes, message: str
) -> None:
    write_cache(f"{tmp_path}/a", random_shards([[9]]), codec=CodecConfig(**stored))
    with pytest.raises(UserError, match=message):
        repack(f"{tmp_path}/a", f"{tmp_path}/b", changes)
    assert not (tmp_path / "b").exists()


def test_floats_are_exact_enough_for_so_many_steps() -> None:
    for dtype, bits in (("float16", 11), ("bfloat16", 8)):
        assert 64 * 2 ** -(bits + 1) == 0.5 / MOST_STEPS[dtype]


def test_draws_from_the_tail_are_of_the_new_tail(everything: str, tmp_path: Path) -> None:
    tail = json.loads((Path(everything) / "manifest.json").read_text())["capture"]["draws"] | {"region": "tail"}
    folder = tmp_path / "a"
    teacher = write_random_teacher(tmp_path / "teacher")
    corpus = write_text_corpus(tmp_path / "corpus", documents=1)
    tree = cache_tree(teacher, corpus, folder, capture={"logits": EVERYTHING["logits"], "draws": tail})
    run(validate(CacheConfig, tree, "test"))
    repack(str(folder), f"{tmp_path}/same", Changes(k=8, zstd_level=5))
    assert payload_ids(f"{tmp_path}/same") == payload_ids(str(folder))
    repack(str(folder), f"{tmp_path}/b", Changes(k=4))
    assert verify(f"{tmp_path}/b").problems == []
    old, new = CacheReader(str(folder)), CacheReader(f"{tmp_path}/b")
    dropped = 0
    for sample in range(len(old)):
        before, logits = old.read_logits(sample), new.read_logits(sample)
        drawn, redrawn = old.read(sample, "draws"), new.read(sample, "draws")
        np.testing.assert_array_equal(redrawn.entropy, drawn.entropy)
        for row, ids in enumerate(redrawn.ids):
            assert not set(logits.ids[row].tolist()) & set(ids.ravel().tolist())
            assert set(ids.ravel().tolist()) <= {*before.ids[row, 4:].tolist(), *drawn.ids[row].ravel().tolist()}
            dropped += np.isin(ids, before.ids[row, 4:]).sum()
    assert dropped > 10


def payload_ids(url: str) -> list[list[int]]:
    reader = CacheReader(url)
    return [np.sort(reader.read(sample, "draws").ids, axis=2).ravel().tolist() for sample in range(len(reader))]


def test_shards_of_several_code_tables(tmp_path: Path) -> None:
    """Copied payloads: a shard ends where the code table changes. Re-encoded: a single table."""
    for seed in range(3):
        write_cache(f"{tmp_path}/{seed}", random_shards([[9, 8], [7]], seed=seed))
    merge([f"{tmp_path}/{seed}" for seed in range(3)], f"{tmp_path}/all")
    repack(f"{tmp_path}/all", f"{tmp_path}/copied", Changes(10**6))
    report = repack(f"{tmp_path}/all", f"{tmp_path}/one", Changes(10**6, recode=True))
    copied, one, old = (CacheReader(f"{tmp_path}/{name}") for name in ("copied", "one", "all"))
    assert (copied.shard_sizes.tolist(), len(copied.manifest.tables)) == ([3, 3, 3], 3)
    assert (one.shard_sizes.tolist(), len(one.manifest.tables)) == ([9], 1)
    assert report.changes.endswith("one code table")
    assert payloads(f"{tmp_path}/copied", "logits") == payloads(f"{tmp_path}/all", "logits")
    for i in range(9):
        assert np.array_equal(one.read_logits(i).ids, old.read_logits(i).ids)
        assert np.array_equal(one.read_logits(i).logprobs, old.read_logits(i).logprobs)
    assert verify(f"{tmp_path}/one").problems == verify(f"{tmp_path}/copied").problems == []


def index(keys: str, table: str = "0", layers: bool = True) -> ShardIndex:
    member = {"file": {"bytes": 0, "sha256": "0" * 64}, "offsets": [0] * len(keys), "sizes": [0] * len(keys)}
    return ShardIndex.model_validate(
        {
            "name": "shard-000000",
            "keys": list(keys),
            "num_tokens": [10] * len(keys),
            "layers": ["base"] * len(keys) if layers else None,
            "table": table * 64,
            "signals": {"tokens": member | {"checksums": ["0" * 16] * len(keys)}},
        }
    )


@pytest.mark.parametrize(
    ("indexes", "tokens", "mixes", "wanted"),
    [
        ([index("abc"), index("de")], None, True, ["abc", "de"]),
        ([index("abc"), index("de")], 20, True, ["ab", "cd", "e"]),
        ([index("abc"), index("de")], 11, True, ["ab", "cd", "e"]),
        ([index("abc"), index("de")], 30, True, ["abc", "de"]),
        ([index("ab"), index("cd", "1"), index("e", "1")], 99, False, ["ab", "cde"]),
        ([index("ab"), index("cd", "1"), index("e", "1")], 99, True, ["abcde"]),
        ([index("ab"), index("cd", layers=False)], 99, True, ["ab", "cd"]),
        ([index("abc"), index("dbe")], 99, True, ["abcd", "be"]),
        ([], 99, True, []),
    ],
)
def test_where_shards_end(indexes: list[ShardIndex], tokens: int | None, mixes: bool, wanted: list[str]) -> None:
    groups = grouped(indexes, tokens, mixes)
    assert ["".join(part.index.keys[row] for part in parts for row in part.rows) for parts in groups] == wanted


def test_a_damaged_sample_is_named_and_nothing_is_left(plain: str, tmp_path: Path) -> None:
    write_cache(f"{tmp_path}/a", random_shards(LENGTHS))
    change_payload(f"{tmp_path}/a", "logits", 1, lambda payload: with_sections(payload, {12: b""}))
    key = CacheReader(f"{tmp_path}/a").keys[1]
    with pytest.raises(CorruptCacheError, match=f"a/shard-000000.logits.tar: sample {key}: "):
        repack(f"{tmp_path}/a", f"{tmp_path}/b", Changes(k=4))
    assert Storage(f"{tmp_path}/b").names() == []
    change_index(f"{tmp_path}/a", lambda tree: tree["signals"]["logits"]["checksums"].__setitem__(2, "0" * 16))
    with pytest.raises(CorruptCacheError, match=f"sample {CacheReader(plain).keys[2]}: xxh3 of"):
        repack(f"{tmp_path}/a", f"{tmp_path}/b", Changes(10**6))
    assert Storage(f"{tmp_path}/b").names() == []


def test_between_a_disk_and_a_store(plain: str, s3_url: str) -> None:
    repack(plain, f"{s3_url}/b", Changes(k=5))
    repack(f"{s3_url}/b", f"{s3_url}/c", Changes(40))
    assert verify(f"{s3_url}/c").problems == []
    assert payloads(f"{s3_url}/c", "logits") == payloads(f"{s3_url}/b", "logits")
    history = read_manifest(Storage(f"{s3_url}/c")).derived
    assert history is not None
    assert history.sources[0].derived is not None
    assert history.sources[0].derived.sources == [source_of(read_manifest(Storage(plain)))]


def test_the_command(plain: str, tmp_path: Path) -> None:
    arguments = ["repack", plain, f"{tmp_path}/b", "--k", "4", "--tokens-per-shard", "100", "--steps-per-nat", "8"]
    result = CliRunner().invoke(main, [*arguments, "--zstd-level", "3", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["shards"], report["samples"], report["coded_anew"]) == (2, 6, True)
    made = read_manifest(Storage(f"{tmp_path}/b"))
    assert (made.capture.logits.k, made.codec.logprob_steps_per_nat, made.codec.zstd_level) == (4, 8, 3)
    refused = CliRunner().invoke(main, ["repack", plain, f"{tmp_path}/c", "--k", "20"])
    assert (refused.exit_code, "capture.logits.k: 20" in refused.stderr) == (2, True)
