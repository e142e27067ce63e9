"""Every way to read returns the samples as written, or an error that names file and sample."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard

from schemas.arrow import SIGNAL_SCHEMA, TOKENS_SCHEMA
from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from support.forge import (
    SHARD,
    arrow_stream,
    change_payload,
    claiming_frame,
    columns,
    frame_of,
    sections,
    with_sections,
)
from support.golden import FIXTURES
from support.synthetic import Pair, random_shards, write_cache
from teacher_cache.records import RowBatch
from teacher_cache.shards.marks import tar_name
from teacher_cache.shards.reader import CacheReader

LENGTHS = [[20, 1, 31], [7, 40], [3]]
CAPTURES = {  # and the share of the rows that count
    "top_k": (LogitsCapture(k=8), 1.0),
    "nucleus": (LogitsCapture(policy="nucleus", k=8, mass=0.9, temperatures=[2.0, 1.0, 4.0], positions="all"), 1.0),
    "scattered": (LogitsCapture(k=30, temperatures=[1.0]), 0.5),
    "all of scattered": (LogitsCapture(k=30, positions="all"), 0.5),
}
Written = tuple[str, list[Pair]]


@pytest.fixture(scope="module", params=list(CAPTURES))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A cache's folder and its samples."""
    capture, counting = CAPTURES[request.param]
    shards = random_shards(LENGTHS, capture=capture, counting=counting)
    url = str(tmp_path_factory.mktemp("cache"))
    write_cache(url, shards, capture=capture)
    return url, [pair for shard in shards for pair in shard]


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A cache of one shard of two samples, to be broken."""
    write_cache(str(tmp_path), random_shards([[6, 9]]))
    return str(tmp_path)


def arrays(record: object) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(record).items() if isinstance(value, np.ndarray)}


def assert_equal(found: object, wanted: object) -> None:
    for name, array in arrays(wanted).items():
        np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)


def test_samples_come_back_in_order(written: Written) -> None:
    url, pairs = written
    reader = CacheReader(url)
    assert len(reader) == 6
    assert reader.keys == [tokens.key for tokens, _ in pairs]
    assert reader.num_tokens.tolist() == [20, 1, 31, 7, 40, 3]
    codec = CodecConfig()
    for position, (tokens, logits) in enumerate(pairs):
        assert_equal(reader.read_tokens(position), tokens)
        found = reader.read_logits(position)
        for name in ("num_tokens", "positions", "counts", "ids"):
            np.testing.assert_array_equal(getattr(found, name), getattr(logits, name), err_msg=name)
        step = {"rtol": 1e-6, "atol": 0.5001 / codec.scalar_steps_per_nat}
        np.testing.assert_allclose(
            found.logprobs, logits.logprobs, rtol=1e-6, atol=0.5001 / codec.logprob_steps_per_nat
        )
        np.testing.assert_allclose(found.next_logprob, logits.next_logprob, **step)
        np.testing.assert_allclose(found.log_partition, logits.log_partition, **step)


@pytest.mark.parametrize("position", [-1, 6, 10**9])
def test_positions_outside_the_cache_are_refused(written: Written, position: int) -> None:
    with pytest.raises(IndexError):
        CacheReader(written[0]).read_tokens(position)


def check_rows(reader: CacheReader, rows: list[list[int]], length: int | None = None) -> RowBatch:
    """Compare ``read_rows`` with the samples read one by one, including padding and rows that are not stored."""
    batch = reader.read_rows(rows, length)
    capture = reader.manifest.capture.logits
    used = [sum(int(reader.num_tokens[p]) for p in row) for row in rows]
    shape = (len(rows), max(used) if length is None else length)
    expected = RowBatch(
        input_ids=np.zeros(shape, np.int64),
        position_ids=np.zeros(shape, np.int64),
        attention_mask=np.zeros(shape, bool),
        loss_mask=np.zeros(shape, bool),
        ids=np.zeros((*shape, capture.k), np.int32),
        logprobs=np.full((*shape, capture.k), -np.inf, np.float32),
        next_logprob=np.full(shape, np.nan, np.float32),
        log_partition=np.zeros((*shape, len(capture.temperatures)), np.float32),
    )
    for r, row in enumerate(rows):
        start = 0
        for position in row:
            tokens, logits = reader.read_tokens(position), reader.read_logits(position)
            span = slice(start, start + len(tokens.input_ids))
            expected.input_ids[r, span] = tokens.input_ids
            expected.position_ids[r, span] = np.arange(len(tokens.input_ids))
            expected.attention_mask[r, span] = True
            expected.loss_mask[r, span] = tokens.loss_mask
            for name in ("ids", "logprobs", "next_logprob", "log_partition"):
                getattr(expected, name)[r, start + logits.positions] = getattr(logits, name)
            start = span.stop
    assert_equal(batch, expected)
    for name, array in arrays(expected).items():
        assert getattr(batch, name).dtype == array.dtype
    return batch


@pytest.mark.parametrize("length", [None, 40, 41, 100])
def test_one_sample_a_row(written: Written, length: int | None) -> None:
    check_rows(CacheReader(written[0]), [[position] for position in (4, 0, 1, 5, 3, 2)], length)


@pytest.mark.parametrize("length", [None, 64])
def test_samples_packed_one_after_the_other(written: Written, length: int | None) -> None:
    batch = check_rows(CacheReader(written[0]), [[2, 0], [1], [3, 3, 5, 1], []], length)
    assert (batch.position_ids[0, :51] == [*range(31), *range(20)]).all()
    assert np.isnan(batch.next_logprob[0, [30, 50]]).all()
    assert not batch.loss_mask[0, [30, 50]].any()


def test_a_row_that_does_not_fit(written: Written) -> None:
    reader = CacheReader(written[0])
    for rows in ([[4]], [[0], [0, 2]], [[3], [4]]):
        used = max(sum(int(reader.num_tokens[p]) for p in row) for row in rows)
        with pytest.raises(ValueError, match=f"a row of {used} tokens does not fit into {used - 1}"):
            reader.read_rows(rows, used - 1)
        reader.read_rows(rows, used)


def test_threads_see_the_same_arrays(written: Written) -> None:
    reader = CacheReader(written[0])
    requests = [[[i % 6], [(i * 5 + 1) % 6, i % 3]] for i in range(40)]
    wanted = [CacheReader(written[0]).read_rows(rows) for rows in requests]
    with ThreadPoolExecutor(8) as pool:
        for found, expected in zip(pool.map(reader.read_rows, requests), wanted, strict=True):
            assert_equal(found, expected)


def test_batches_read_ahead_are_the_same(written: Written) -> None:
    reader = CacheReader(written[0])
    requests = [[[i % 6], [(i * 5 + 1) % 6, i % 3]] for i in range(40)]
    for found, rows in zip(reader.read_batches(iter(requests)), requests, strict=True):
        assert_equal(found, CacheReader(written[0]).read_rows(rows))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_does_not_matter(written: Written, threads: int) -> None:
    reader, rows = CacheReader(written[0]), [[4], [0, 1], [5, 3, 2], []]
    assert_equal(reader.read_rows(rows, threads=threads), check_rows(reader, rows))


def test_batches_do_not_share_memory(written: Written) -> None:
    reader = CacheReader(written[0])
    first = reader.read_rows([[0], [2]])
    before = {name: array.copy() for name, array in arrays(first).items()}
    for rows in ([[4], [5]], [[0], [1]], [[2], [2]]):  # memory of released batches is reused
        reader.read_rows(rows)
    assert_equal(first, RowBatch(**before))


def test_a_pickled_reader_reads_on(written: Written) -> None:
    reader = CacheReader(written[0])
    reader.read_rows([[0], [1], [2]])
    data = pickle.dumps(reader)
    copy = pickle.loads(data)
    assert copy.keys == reader.keys
    assert copy.manifest == reader.manifest
    assert_equal(copy.read_rows([[0, 1], [4]]), reader.read_rows([[0, 1], [4]]))


def test_a_forked_reader_reads_on(written: Written) -> None:
    reader = CacheReader(written[0])
    wanted = reader.read_rows([[0], [1], [2]])  # its threads are running now
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:  # a Pool would end them by SIGTERM
        for found in pool.map(reader.read_rows, [[[0], [1], [2]]] * 4, timeout=60):
            assert_equal(found, wanted)


def test_a_closed_reader_reopens(written: Written) -> None:
    reader = CacheReader(written[0])
    wanted = reader.read_rows([[0], [2]])
    reader.close()
    reader.close()
    assert_equal(reader.read_rows([[0], [2]]), wanted)


def test_only_the_files_of_the_wanted_signals_are_needed(small: str) -> None:
    (Path(small) / tar_name(SHARD, "logits")).unlink()
    assert CacheReader(small, signals=("tokens",)).read_tokens(1).key
    with pytest.raises(CorruptCacheError, match=r"logits\.tar: the file is missing"):
        CacheReader(small)


@pytest.mark.parametrize("signal", ["tokens", "logits"])
def test_every_flipped_bit_of_a_payload_is_detected(small: str, signal: str) -> None:
    reader = CacheReader(small)
    read = reader.read_tokens if signal == "tokens" else reader.read_logits
    rng = np.random.default_rng(0)
    path = Path(small) / tar_name(SHARD, signal)
    sound = path.read_bytes()
    member = reader.index(0).signals[signal]
    for position, key in enumerate(reader.keys):
        for place in rng.integers(0, member.sizes[position], 150):
            broken = bytearray(sound)
            broken[member.offsets[position] + place] ^= 1 << rng.integers(8)
            path.write_bytes(broken)
            with pytest.raises(CorruptCacheError) as caught:
                read(position)
            assert str(caught.value).startswith(f"{path}: sample {key}: ")
            read(1 - position)  # the other one is not touched
    path.write_bytes(sound)
    read(0)


@pytest.mark.parametrize("change", ["shorter", "longer", "empty"])
@pytest.mark.parametrize("signal", ["tokens", "logits"])
def test_a_tar_of_another_size_is_refused_at_opening(small: str, signal: str, change: str) -> None:
    path = Path(small) / tar_name(SHARD, signal)
    data = path.read_bytes()
    path.write_bytes({"shorter": data[:-1], "longer": data + b"\0", "empty": b""}[change])
    with pytest.raises(CorruptCacheError, match=f"{path}: [0-9]+ bytes, the manifest says {len(data)}"):
        CacheReader(small)


def test_a_tar_cut_while_it_is_open_names_the_sample(small: str) -> None:
    reader = CacheReader(small)
    path = Path(small) / tar_name(SHARD, "logits")
    path.write_bytes(path.read_bytes()[:600])
    for read in (lambda: reader.read_logits(1), lambda: reader.read_rows([[0], [1]])):
        with pytest.raises(CorruptCacheError, match=rf"{path}: sample ({'|'.join(reader.keys)}): "):
            read()


def test_a_tar_removed_while_the_cache_is_open_is_named(small: str) -> None:
    reader = CacheReader(small)
    path = Path(small) / tar_name(SHARD, "tokens")
    path.unlink()
    with pytest.raises(CorruptCacheError, match=str(path)):
        reader.read_tokens(0)


def _compressed(schema: pa.Schema, payload: bytes) -> bytes:
    return arrow_stream(schema, [columns(payload)], compression="zstd")


def _filled(payload: bytes, section: int, byte: bytes) -> bytes:
    return with_sections(payload, {section: byte * len(sections(payload)[section])})


HOSTILE = {  # of a sample of 9 tokens, whose first 8 rows are stored
    "not Arrow": ("logits", lambda payload: b"x" * len(payload)),
    "another schema": (
        "logits",
        lambda payload: arrow_stream(
            pa.schema([pa.field("data", pa.binary(), nullable=False)]), [{"data": columns(payload)["frame"]}]
        ),
    ),
    "compressed logits": ("logits", lambda payload: _compressed(SIGNAL_SCHEMA, payload)),
    "compressed tokens": ("tokens", lambda payload: _compressed(TOKENS_SCHEMA, payload)),
    "claims 2^40": ("logits", lambda payload: arrow_stream(SIGNAL_SCHEMA, [{"frame": claiming_frame(1 << 40)}])),
    "no frame of logits": ("logits", lambda payload: arrow_stream(SIGNAL_SCHEMA, [{"frame": b""}])),
    "no frame of tokens": (
        "tokens",
        lambda payload: arrow_stream(TOKENS_SCHEMA, [columns(payload) | {"frame": b""}]),
    ),
    "a frame too many": (
        "logits",
        lambda payload: arrow_stream(SIGNAL_SCHEMA, [{"frame": columns(payload)["frame"] + frame_of([b"more"])}]),
    ),
    "a frame cut short": (
        "logits",
        lambda payload: arrow_stream(SIGNAL_SCHEMA, [{"frame": columns(payload)["frame"][:-3]}]),
    ),
    "sections that end elsewhere": (
        "logits",
        lambda payload: arrow_stream(SIGNAL_SCHEMA, [{"frame": zstandard.compress(b"\xff" * 60)}]),
    ),
    "row outside": ("logits", lambda payload: with_sections(payload, {0: b"\x7f\x02"})),
    "code outside": ("logits", lambda payload: _filled(payload, 7, b"\xff")),
    "place outside": ("logits", lambda payload: _filled(payload, 3, b"\x7f")),
    "counts of 0": ("logits", lambda payload: with_sections(payload, {1: bytes(16)})),
    "id outside": ("tokens", lambda payload: with_sections(payload, {0: b"\x2c" * 9 + b"\x01" * 9 + bytes(9)})),
    "one token less": ("tokens", lambda payload: with_sections(payload, {0: bytes(24)})),
    "last row counts": ("tokens", lambda payload: with_sections(payload, {1: b"\xff\x01"})),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_payload_with_valid_checksums_names_file_and_sample(small: str, name: str) -> None:
    signal, change = HOSTILE[name]
    change_payload(small, signal, 1, lambda payload: payload)
    CacheReader(small).read_rows([[0], [1]])
    change_payload(small, signal, 1, change)
    reader = CacheReader(small)
    read = reader.read_tokens if signal == "tokens" else reader.read_logits
    wanted = f"{Path(small) / tar_name(SHARD, signal)}: sample {reader.keys[1]}: "
    for attempt in (lambda: read(1), lambda: reader.read_rows([[0], [1]]), lambda: reader.read_rows([[0, 1]])):
        with pytest.raises(CorruptCacheError) as caught:
            attempt()
        assert str(caught.value).startswith(wanted)
    reader.read_rows([[0]])  # a broken sample does not spoil the others


def test_a_payload_of_another_sample_is_refused(small: str) -> None:
    key = CacheReader(small).keys[0]
    change_payload(small, "tokens", 1, lambda payload: arrow_stream(TOKENS_SCHEMA, [columns(payload) | {"key": key}]))
    with pytest.raises(CorruptCacheError, match=f"the payload belongs to sample {key}"):
        CacheReader(small).read_tokens(1)


def test_a_batch_without_samples_has_empty_side_signals() -> None:
    """Occurs if all samples of a batch are damaged and skipped: training continues with the next batch."""
    reader = CacheReader(str(FIXTURES / "format-1.1"), ("tokens", "logits", "draws", "final", "hidden", "attention"))
    full, empty = reader.read_rows([[0], [1]]), reader.read_rows([[], []], 1)
    assert set(empty.side) == {"draws", "final", "hidden", "attention"}
    for signal, batch in empty.side.items():
        for name, array in vars(batch).items():
            wanted = vars(full.side[signal])[name]
            assert (array.shape, array.dtype) == ((0, *wanted.shape[1:]), wanted.dtype), (signal, name)
    assert not empty.attention_mask.any()
