"""Units are written in the background: in order, and nothing after a failure."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.cache_config import LogitsCapture
from schemas.errors import UserError
from schemas.manifest import Manifest, Unit
from support.synthetic import Pair, random_shards, write_cache
from teacher_cache.plan import read_unit
from teacher_cache.records import Captured, LogitsSample
from teacher_cache.shards.marks import committed, read_manifest, read_mark
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.writer import check_tars
from teacher_cache.signals.logits.codec import LogitsCodec
from teacher_cache.writing import MAX_PENDING, UnitWriter

VOCABULARY = 300
SHARDS = random_shards([[9, 5, 7], [4, 6], [8]], VOCABULARY)


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Storage, Manifest]:
    """A cache with its tokens written and no unit scored."""
    write_cache(str(tmp_path), SHARDS, VOCABULARY, LogitsCapture(k=8), commit=0)
    for table in (tmp_path / "tables").iterdir():
        table.unlink()
    storage = Storage(str(tmp_path))
    return storage, read_manifest(storage)


def write(writer: UnitWriter, storage: Storage, unit: Unit, pairs: list[Pair], entropy: float | None = None) -> None:
    sequences, tokens_index = read_unit(storage, unit, VOCABULARY)
    writer.begin(unit, tokens_index)
    for sample, (_, logits) in zip(sequences, pairs, strict=True):
        known = None if entropy is None else np.full(len(logits.positions), entropy, np.float32)
        writer.add([sample], [Captured(logits, entropy=known)])
    writer.commit()


def test_units_are_committed_in_order_and_read_back(planned: tuple[Storage, Manifest], tmp_path: Path) -> None:
    storage, plan = planned
    reported: list[tuple[str, int, float]] = []
    with UnitWriter(storage, plan, "w0-", lambda unit, *sums: reported.append((unit.name, *sums))) as writer:
        for unit, pairs, entropy in zip(plan.units, SHARDS, (0.5, None, 2.0), strict=True):
            write(writer, storage, unit, pairs, entropy)
    rows = [sum(len(logits.positions) for _, logits in pairs) for pairs in SHARDS]
    sums = [(rows[0], 0.5 * rows[0]), (0, 0.0), (rows[2], 2.0 * rows[2])]  # of rows whose entropy is known
    assert reported == [(unit.name, *known) for unit, known in zip(plan.units, sums, strict=True)]
    reader = CacheReader(str(tmp_path))
    for position, (tokens, logits) in enumerate(pair for pairs in SHARDS for pair in pairs):
        assert reader.keys[position] == tokens.key
        np.testing.assert_array_equal(reader.read_logits(position).ids, logits.ids)
    assert len(list((tmp_path / "tables").iterdir())) == 1


def contents(folder: Path, encode_threads: int) -> dict[str, bytes]:
    """The files of a cache of one shard that is added at once, encoded by so many threads."""
    sequences = [pair for pairs in SHARDS for pair in pairs]
    write_cache(str(folder), [sequences], VOCABULARY, LogitsCapture(k=8), commit=0)
    storage = Storage(str(folder))
    plan = read_manifest(storage)
    with UnitWriter(storage, plan, "w0-", lambda *_: None, encode_threads) as writer:
        samples, tokens_index = read_unit(storage, plan.units[0], VOCABULARY)
        writer.begin(plan.units[0], tokens_index)
        writer.add(list(samples), [Captured(logits) for _, logits in sequences])
        writer.commit()
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("encode_threads", [2, 4])
def test_shards_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encode_threads: int
) -> None:
    wanted = contents(tmp_path / "one", 1)
    encode, threads = LogitsCodec.encode, set()
    together = threading.Barrier(encode_threads)

    def slow_for_long_ones(self: LogitsCodec, sample: LogitsSample) -> bytes:
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            together.wait(10)  # until all threads encode at the same time
        time.sleep(0.005 * sample.num_tokens)  # so that later sequences finish first
        return encode(self, sample)

    monkeypatch.setattr(LogitsCodec, "encode", slow_for_long_ones)
    assert contents(tmp_path / "several", encode_threads) == wanted
    assert len(threads) == encode_threads


def test_after_a_failure_only_earlier_units_are_committed(planned: tuple[Storage, Manifest], tmp_path: Path) -> None:
    """A sample that cannot be encoded, with more work pending: no later task may commit the unit."""
    storage, plan = planned
    (tokens, logits), *others = SHARDS[1]
    impossible = replace(logits, logprobs=logits.logprobs + 99)  # above 0
    shards = [SHARDS[0], [(tokens, impossible), *others], SHARDS[2]]
    before = {path.name for path in tmp_path.rglob("*") if path.is_file()}

    def run() -> None:
        with UnitWriter(storage, plan, "w0-", lambda *_: None) as writer:
            for unit, pairs in zip(plan.units, shards, strict=True):
                write(writer, storage, unit, pairs)

    with pytest.raises(ValueError, match="must be at most 0"):
        run()
    assert committed(storage, plan) == [plan.units[0].name]
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    (table,) = (tmp_path / "tables").iterdir()
    assert left == before | {"shard-000000.json", "shard-000000.logits.tar", table.name}


def test_an_engine_that_fails_leaves_nothing_of_its_unit(planned: tuple[Storage, Manifest], tmp_path: Path) -> None:
    storage, plan = planned

    def run() -> None:
        with UnitWriter(storage, plan, "w0-", lambda *_: None) as writer:
            sequences, tokens_index = read_unit(storage, plan.units[0], VOCABULARY)
            writer.begin(plan.units[0], tokens_index)
            writer.add(sequences[:1], [Captured(SHARDS[0][0][1])])
            raise RuntimeError("the engine failed")

    with pytest.raises(RuntimeError, match="engine"):
        run()
    assert committed(storage, plan) == []
    assert not list(tmp_path.glob("*logits*")) + list(tmp_path.glob(".tmp*"))


def test_the_engine_waits_only_when_too_much_is_pending(planned: tuple[Storage, Manifest]) -> None:
    storage, plan = planned
    go_on, calls = threading.Event(), []
    with UnitWriter(storage, plan, "w0-", lambda *_: None) as writer:
        writer._submit(go_on.wait)
        for _ in range(MAX_PENDING):
            writer._submit(lambda: None)
        late = threading.Thread(target=lambda: (writer._submit(lambda: None), calls.append("returned")))
        late.start()
        late.join(0.2)
        assert calls == []
        go_on.set()
        late.join(10)
        assert calls == ["returned"]


@pytest.mark.parametrize("damage", ["empty", "half", "other", "missing"])
def test_no_mark_is_written_for_tars_that_were_changed(tmp_path: Path, damage: str) -> None:
    """Another process replaced or truncated a tar before its shard was committed."""
    write_cache(str(tmp_path), SHARDS, VOCABULARY, LogitsCapture(k=8))
    storage = Storage(str(tmp_path))
    index = read_mark(storage, "shard-000001")
    check_tars(storage, index)
    path = tmp_path / "shard-000001.logits.tar"
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "other": data[::-1], "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=r"shard-000001\.logits\.tar: "):
        check_tars(storage, index)
