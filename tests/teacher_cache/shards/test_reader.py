import json
import pickle
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset
import zstandard

from schemas.cache_config import LogitsCapture
from schemas.errors import CorruptCacheError, UserError
from support.synthetic import random_shards, write_cache
from teacher_cache.records import RowBatch
from teacher_cache.shards.reader import CacheReader

LENGTHS = [[12, 3, 25], [1, 30], [8]]
CAPTURE = LogitsCapture(policy="nucleus", k=8, mass=0.9)


@pytest.fixture(scope="module", params=["top_k", "nucleus"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    capture = LogitsCapture(policy=request.param, k=8, mass=0.9)
    write_cache(str(folder), random_shards(LENGTHS, capture=capture), capture=capture)
    return folder


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "copy"))


def same(one: RowBatch, other: RowBatch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(RowBatch)]
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def test_samples_come_back_as_they_were_written(cache: Path) -> None:
    reader = CacheReader(str(cache))
    policy = reader.manifest.capture.logits.policy
    written = [
        pair for shard in random_shards(LENGTHS, capture=LogitsCapture(policy=policy, k=8, mass=0.9)) for pair in shard
    ]
    assert len(reader) == 6
    assert reader.num_tokens.tolist() == [12, 3, 25, 1, 30, 8]
    for position, (tokens, logits) in enumerate(written):
        read_tokens, read_logits = reader.read_tokens(position), reader.read_logits(position)
        assert read_tokens.key == reader.keys[position] == tokens.key
        assert (read_tokens.text, read_tokens.source_id, read_tokens.layer) == (
            tokens.text,
            tokens.source_id,
            tokens.layer,
        )
        for name in ("input_ids", "loss_mask", "byte_start", "byte_end"):
            assert np.array_equal(getattr(read_tokens, name), getattr(tokens, name))
        assert np.array_equal(read_logits.counts, logits.counts)
        assert np.array_equal(read_logits.ids, logits.ids)


def test_rows_are_padded_as_documented(cache: Path) -> None:
    reader = CacheReader(str(cache))
    batch = reader.read_rows([[0], [1], [4]], length=40)
    for row, position in enumerate([0, 1, 4]):
        n, logits, tokens = reader.num_tokens[position], reader.read_logits(position), reader.read_tokens(position)
        assert np.array_equal(batch.input_ids[row, :n], tokens.input_ids)
        assert np.array_equal(batch.loss_mask[row, :n], tokens.loss_mask)
        assert np.array_equal(batch.position_ids[row, :n], np.arange(n))
        assert np.array_equal(batch.ids[row, :n], logits.ids)
        assert np.array_equal(batch.logprobs[row, :n], logits.logprobs)
        assert np.array_equal(batch.next_logprob[row, :n], logits.next_logprob, equal_nan=True)
        assert np.array_equal(batch.log_partition[row, :n], logits.log_partition)
        assert batch.attention_mask[row].tolist() == [True] * n + [False] * (40 - n)
        for name, padding in (
            ("input_ids", 0),
            ("position_ids", 0),
            ("loss_mask", 0),
            ("ids", 0),
            ("log_partition", 0),
        ):
            assert (getattr(batch, name)[row, n:] == padding).all()
        assert (batch.logprobs[row, n:] == -np.inf).all()
        assert np.isnan(batch.next_logprob[row, n:]).all()


def test_packed_rows_are_the_samples_one_after_the_other(cache: Path) -> None:
    reader = CacheReader(str(cache))
    packed = reader.read_rows([[2, 0], [5, 3, 1]])
    assert packed.input_ids.shape == (2, 37)
    single = [reader.read_rows([[i]]) for i in (5, 3, 1)]
    for field in fields(RowBatch):
        joined = np.concatenate([getattr(part, field.name)[0] for part in single])
        assert np.array_equal(getattr(packed, field.name)[1, :12], joined, equal_nan=joined.dtype.kind == "f")
    assert packed.position_ids[1, :12].tolist() == [*range(8), 0, 0, 1, 2]


def test_rows_that_do_not_fit_and_positions_that_are_not_there(cache: Path) -> None:
    reader = CacheReader(str(cache))
    with pytest.raises(ValueError, match="a row of 37 tokens does not fit into 36"):
        reader.read_rows([[0, 2]], length=36)
    for position in (-1, 6):
        with pytest.raises(IndexError):
            reader.read_tokens(position)


def test_threads_and_pickling_give_the_same(cache: Path) -> None:
    reader = CacheReader(str(cache))
    rows = [[i] for i in range(6)]
    expected = reader.read_rows(rows)
    with ThreadPoolExecutor(4) as pool:
        assert all(same(expected, batch) for batch in pool.map(lambda _: reader.read_rows(rows), range(20)))
    assert same(expected, pickle.loads(pickle.dumps(reader)).read_rows(rows))
    reader.close()
    assert same(expected, reader.read_rows(rows)), "a closed reader opens its files again"


def test_reading_from_an_object_store(cache: Path, s3_url: str) -> None:
    capture = LogitsCapture(k=8)
    write_cache(s3_url, random_shards(LENGTHS, capture=capture), capture=capture)
    reader = CacheReader(s3_url)
    rows = [[5], [0, 1], [4]]
    local = cache.parent / f"local-{cache.name}"
    write_cache(str(local), random_shards(LENGTHS, capture=capture), capture=capture)
    assert same(reader.read_rows(rows), CacheReader(str(local)).read_rows(rows))


def test_only_the_wanted_signals_are_touched(copy: Path) -> None:
    for tar in copy.glob("*.logits.tar"):
        tar.unlink()
    reader = CacheReader(str(copy), signals=("tokens",))
    assert len(reader.read_tokens(2).input_ids) == 25
    with pytest.raises(CorruptCacheError, match=r"shard-000000\.logits\.tar: the file is missing"):
        CacheReader(str(copy))


def test_every_flipped_bit_of_a_payload_is_found_and_named(copy: Path) -> None:
    rng = random.Random(0)
    reader = CacheReader(str(copy))
    mark = json.loads((copy / "shard-000000.json").read_text())
    for signal in ("tokens", "logits"):
        path = copy / f"shard-000000.{signal}.tar"
        clean = path.read_bytes()
        for _ in range(40):
            row = rng.randrange(3)
            place = mark["signals"][signal]["offsets"][row] + rng.randrange(mark["signals"][signal]["sizes"][row])
            data = bytearray(clean)
            data[place] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            with pytest.raises(
                CorruptCacheError, match=rf"shard-000000\.{signal}\.tar: sample {mark['keys'][row]}: xxh3"
            ):
                reader.read_rows([[0], [1], [2], [4]])
        path.write_bytes(clean)


def test_a_payload_with_a_right_checksum_is_still_distrusted(copy: Path) -> None:
    """Whoever can write the mark can write checksums too: what is decoded is checked on its own."""
    reader = CacheReader(str(copy))
    shard = reader._shards[0]
    wrong = {"offsets": [shard.signals["logits"].offsets[1], *shard.signals["logits"].offsets[1:]]}
    for name in ("sizes", "checksums"):
        values = getattr(shard.signals["logits"], name)
        wrong[name] = [values[1], *values[1:]]
    member = shard.signals["logits"].model_copy(update=wrong)
    reader._shards[0] = shard.model_copy(update={"signals": {**shard.signals, "logits": member}})
    with pytest.raises(CorruptCacheError, match=rf"logits\.tar: sample {reader.keys[0]}: column"):
        reader.read_rows([[0], [4], [5]])


@pytest.mark.parametrize("tamper", ["truncate", "grow", "offset", "key twice", "lists", "table", "version", "count"])
def test_contradictions_are_found_when_the_cache_is_opened(copy: Path, tamper: str) -> None:
    mark_path, manifest_path = copy / "shard-000001.json", copy / "manifest.json"
    mark, manifest = json.loads(mark_path.read_text()), json.loads(manifest_path.read_text())
    tar = copy / "shard-000001.logits.tar"
    if tamper == "truncate":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif tamper == "grow":
        tar.write_bytes(tar.read_bytes() + bytes(512))
    elif tamper == "table":
        next((copy / "tables").iterdir()).unlink()
    elif tamper == "version":
        manifest["format_version"] = 2
        manifest_path.write_text(json.dumps(manifest))
    else:
        {
            "offset": lambda: mark["signals"]["logits"]["offsets"].__setitem__(1, 10**9),
            "key twice": lambda: mark["keys"].__setitem__(1, mark["keys"][0]),
            "lists": lambda: mark["num_tokens"].append(5),
            "count": lambda: mark["num_tokens"].__setitem__(0, 2**40),
        }[tamper]()
        data = json.dumps(mark).encode()
        mark_path.write_bytes(data)
        import hashlib

        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["shards"][1]["index"] = entry  # as one who forges both would
        manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"shard-000001|tables/|format_version 2"):
        CacheReader(str(copy)).read_rows([[i] for i in range(6)])


def test_plain_webdataset_pyarrow_zstandard_and_numpy_read_it(cache: Path) -> None:
    """A reader written from the format's description alone."""
    manifest = json.loads((cache / "manifest.json").read_text())
    k, steps = manifest["capture"]["logits"]["k"], manifest["codec"]["logprob_steps_per_nat"]
    scalar_steps = manifest["codec"]["scalar_steps_per_nat"]
    reader = CacheReader(str(cache))

    def planes(frames: list[bytes]) -> np.ndarray:
        parts = [np.frombuffer(zstandard.decompress(frame), np.uint8).astype(np.uint32) for frame in frames]
        return sum((part << np.uint32(8 * i) for i, part in enumerate(parts)), np.zeros((), np.uint32))

    seen = 0
    for shard in sorted(cache.glob("shard-*.json")):
        mark = json.loads(shard.read_text())
        table = np.frombuffer(zstandard.decompress((cache / f"tables/{mark['table']}.zst").read_bytes()), "<u4")
        for url in (str(shard.with_suffix(".logits.tar")), str(shard.with_suffix(".tokens.tar"))):
            for sample in webdataset.WebDataset(url, shardshuffle=False, empty_check=False):
                position = reader.keys.index(sample["__key__"])
                n = reader.num_tokens[position]
                if "tokens.arrow" in sample:
                    row = pa.ipc.open_stream(sample["tokens.arrow"]).read_all().to_pylist()[0]
                    assert row["input_ids"] == reader.read_tokens(position).input_ids.tolist()
                    assert row["text"] == reader.read_tokens(position).text
                    continue
                row = pa.ipc.open_stream(sample["logits.arrow"]).read_all().to_pylist()[0]
                counts = planes(row["counts"]) if row["counts"] else np.full(n, k)
                stored = np.arange(k) < counts[:, None]
                expected = reader.read_logits(position)
                ids = np.zeros((n, k), np.int64)
                ids[stored] = table[planes(row["ids"])]
                assert np.array_equal(ids, expected.ids)
                differences = np.zeros((k, n), np.int64)
                differences[stored.T] = planes(row["logprobs"])
                logprobs = np.where(stored, -np.cumsum(differences, axis=0).T / steps, -np.inf)
                assert np.array_equal(logprobs.astype(np.float32), expected.logprobs)
                scalars = planes(row["scalars"]).view(np.int32).reshape(-1, n) / scalar_steps
                assert np.array_equal(scalars[0, :-1].astype(np.float32), expected.next_logprob[:-1])
                assert np.array_equal(scalars[1:].T.astype(np.float32), expected.log_partition)
                seen += 1
    assert seen == 6
