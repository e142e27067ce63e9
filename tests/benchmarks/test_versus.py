from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.streaming import arms
from benchmarks.streaming.arms import Arm, Prepared, Round
from benchmarks.streaming.delivered_rows import DELIVERED, Columns, Reference, WrongRowsError, collate, delivered
from benchmarks.streaming.ours import Ours
from benchmarks.streaming.readers import OURS, OURS_MIXED, OURS_ONE_THREAD, STREAMERS
from benchmarks.streaming.row_storage import Remote, packed, stored, unpacked
from benchmarks.streaming.versus import as_rows
from benchmarks.support import longer_cache as longer
from benchmarks.support.environments import make_environment
from benchmarks.support.longer_cache import longer_cache
from support.s3_server import s3_server
from support.synthetic import random_shards, write_cache
from teacher_cache.shards import reader as cache_reader
from teacher_cache.shards.reader import CacheReader

LENGTHS = [[60, 45], [52]]
PER_SEQUENCE = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A cache, a longer one made from it, and the latter's rows."""
    folder = tmp_path_factory.mktemp("streaming")
    write_cache(str(folder / "source"), random_shards(LENGTHS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(longer, "MIN_TOKENS", 20)
        longer_cache(folder / "source", folder / "cache", PER_SEQUENCE)
    Reference.save(folder / "rows", CacheReader(str(folder / "cache")))
    return folder


@pytest.fixture
def reference(folder) -> Reference:
    return Reference.load(folder / "rows")


def batches(reference: Reference, size: int = 4) -> Iterator[Columns]:
    for start in range(0, len(reference), size):
        yield collate([reference.sample(i) for i in range(start, min(start + size, len(reference)))])


def test_a_longer_cache_holds_beginnings_of_the_source(folder) -> None:
    source, made = CacheReader(str(folder / "source")), CacheReader(str(folder / "cache"))
    assert made.manifest.complete
    assert len(made) == PER_SEQUENCE * len(source) == len(set(made.keys))
    assert 20 <= made.num_tokens.min() < made.num_tokens.max()
    whole = delivered(source.read_rows([[position] for position in range(len(source))]))
    for position in range(len(made)):
        cut, n = delivered(made.read_rows([[position]])), int(made.num_tokens[position])
        (row,) = (r for r in range(len(source)) if np.array_equal(whole["input_ids"][r, :n], cut["input_ids"][0]))
        assert np.array_equal(whole["ids"][row, :n], cut["ids"][0])
        assert np.abs(whole["logprobs"][row, :n] - cut["logprobs"][0]).max() < 1e-6
        assert np.array_equal(whole["next_logprob"][row, : n - 1], cut["next_logprob"][0, : n - 1])
        assert np.isnan(cut["next_logprob"][0, -1])
        assert made.read_tokens(position).text == source.read_tokens(row).text[: len(made.read_tokens(position).text)]


def test_a_longer_cache_is_made_once(folder) -> None:
    before = (folder / "cache/manifest.json").stat().st_mtime_ns
    longer_cache(folder / "source", folder / "cache", PER_SEQUENCE)
    assert (folder / "cache/manifest.json").stat().st_mtime_ns == before


def test_others_batches_are_those_of_the_cache(folder, reference) -> None:
    ours, theirs = (
        delivered(CacheReader(str(folder / "cache")).read_rows([[2], [0]])),
        collate([reference.sample(i) for i in (2, 0)]),
    )
    for name in DELIVERED:
        assert theirs[name].dtype == ours[name].dtype
        assert np.array_equal(theirs[name], ours[name], equal_nan=name == "next_logprob")


def test_true_rows_pass(reference) -> None:
    assert reference.check(batches(reference)) == 0


@pytest.mark.parametrize("name", ["input_ids", "ids", "next_logprob", "log_partition"])
def test_a_changed_value_is_found(reference, name) -> None:
    changed = list(batches(reference))
    changed[1][name][1, 3] += 1
    with pytest.raises(WrongRowsError):
        reference.check(changed)


def test_an_error_of_a_log_probability_is_measured(reference) -> None:
    changed = list(batches(reference))
    changed[1]["logprobs"][1, 3, 2] += 0.25
    assert reference.check(changed) == pytest.approx(0.25)


def test_samples_that_are_missing_or_come_twice_are_found(reference) -> None:
    whole = list(batches(reference))
    with pytest.raises(WrongRowsError, match=f"of {len(reference)}"):
        reference.check(whole[1:])
    with pytest.raises(WrongRowsError, match=f"of {len(reference)}"):
        reference.check([*whole[1:], whole[1]])


def test_padding_must_be_empty(reference) -> None:
    changed = list(batches(reference))
    shortest = int(np.isnan(changed[0]["next_logprob"]).sum(axis=1).argmax())
    changed[0]["ids"][shortest, -1] = 7
    with pytest.raises(WrongRowsError, match="padding"):
        reference.check(changed)


def test_packed_columns_come_back(reference) -> None:
    sample = next(stored(reference))
    back = unpacked(packed(sample))
    for name, array in sample.items():
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name], array, equal_nan=name == "next_logprob")


@pytest.mark.parametrize("name", [name for name, kind in STREAMERS.items() if not kind.foreign])
def test_readers_give_every_row_once_in_changing_order(folder, reference, tmp_path, monkeypatch, name) -> None:
    monkeypatch.setattr(cache_reader, "DECODE_THREADS", cache_reader.DECODE_THREADS)  # restored: one reader changes it
    kind = STREAMERS[name]
    streamer = kind(folder / "cache" if issubclass(kind, Ours) else tmp_path / "theirs")
    streamer.store(reference)
    assert streamer.bytes_on_disk > 0
    assert streamer.version
    orders = []
    for number in range(2):
        epoch = list(streamer.epoch(number))
        assert reference.check(epoch) <= arms.MAX_ERROR
        orders.append([row.tolist() for batch in epoch for row in batch["ids"][:, 0]])
    assert orders[0] != orders[1]


def test_readers_give_every_row_once_from_a_store(folder, reference, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cache_reader, "DECODE_THREADS", cache_reader.DECODE_THREADS)
    with s3_server() as server:
        for name, kind in STREAMERS.items():
            if kind.foreign:
                continue
            streamer = kind(folder / "cache" if issubclass(kind, Ours) else tmp_path / kind.__name__)
            streamer.store(reference)
            url = server.upload(streamer.folder, kind.__name__)
            read = kind(streamer.folder, Remote(url, server.endpoint, tmp_path / name))
            assert reference.check(read.epoch(0)) <= arms.MAX_ERROR, name
            read.close()
        assert server.processor_seconds > 0


def test_systems_that_did_not_run_are_reported_and_not_held_to_bars() -> None:
    local, remote = (
        [Arm(name) for name in STREAMERS if name != left_out] for left_out in (OURS_MIXED, OURS_ONE_THREAD)
    )
    for each in (local, remote):
        for number, arm in enumerate(each):
            arm.rounds, arm.prepared = [Round(2.0, 1.0, 0.1), Round(1.0 + number, 1.0, 0.1)], Prepared("1.0", 1000)
            arm.server_seconds = [1.0, 0.25]
    slow, gone = local[-1], local[2]
    slow.rounds = [Round(0.5, 0.5, 0.1)]
    for arm in (gone, remote[2]):
        arm.rounds, arm.prepared = [], Prepared(problem="not installable here: no network")
    remote[1].rounds = [Round(0.5, 0.5, 0.1)] * 2  # also this cache
    rows = as_rows(local, remote, 1_000_000)
    assert [row.holds for row in rows[:3]] == [True, False, True]
    assert rows[0].value == 2.0  # the best other reader takes two seconds
    assert rows[1].value == 0.5
    assert rows[2].value == 2.0
    assert rows[3].what == f"disk: {OURS}: true random order; all checksums verified"
    assert rows[3].value == "1.00 · 1.00 · 0"
    said = [row.what for row in rows if row.value == "not installable here: no network"]
    assert [what.split(":")[0] for what in said] == ["disk", "S3"]
    assert gone.name in said[0]
    from_s3 = [row for row in rows[3:] if row.what.startswith("S3: ")]
    assert from_s3[0].value == "1.00 · 1.00 · 25"
    assert all("checks nothing" in row.what for row in rows[5 : -len(from_s3)])


def test_an_environment_that_cannot_be_made_says_why(tmp_path) -> None:
    (tmp_path / "requirements.txt").write_text("missing @ file:///no/such/missing-1-py3-none-any.whl\n")
    problem = make_environment(tmp_path / "environment", tmp_path / "requirements.txt")
    assert problem is not None
    assert "missing" in problem
