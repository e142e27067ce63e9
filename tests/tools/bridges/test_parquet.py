"""The plain layout: readable by `datasets`, equal to the cache, and bit-identical after a round trip."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas.cache_config import LogitsCapture
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.bridges.captured_source import CapturedOptions
from tools.bridges.export import export
from tools.bridges.imports import import_files
from tools.checking.verify import verify

CAPTURES = {
    "top_k": LogitsCapture(k=32),
    "all_rows": LogitsCapture(k=8, positions="all", temperatures=[2.0, 1.0]),
    "nucleus": LogitsCapture(policy="nucleus", k=32, mass=0.5),
}


def silent(done: int, total: int) -> None:
    assert 0 < done <= total


def exported(folder: Path, capture: LogitsCapture, tokens_per_file: int = 1_000_000) -> tuple[str, Path]:
    """URL of a cache of two shards, with rows partly in the loss mask; and its export."""
    url, out = str(folder / "cache"), folder / "out"
    write_cache(url, random_shards([[9, 5, 30], [7, 12]], capture=capture, counting=0.7), capture=capture)
    export(url, str(out), "parquet", None, tokens_per_file, silent)
    return url, out


@pytest.mark.parametrize("name", CAPTURES)
def test_datasets_reads_the_values_of_the_cache(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.bridges.export.VALUES_AT_A_TIME", 12 * CAPTURES[name].k)  # several row groups
    url, out = exported(tmp_path, CAPTURES[name], tokens_per_file=20)
    reader = CacheReader(url)
    cached = str(tmp_path / "hf")
    rows = datasets.load_dataset("parquet", data_files=str(out / "data/*.parquet"), split="train", cache_dir=cached)
    by_card = datasets.load_dataset(str(out), split="train", cache_dir=cached)
    assert by_card.column_names == rows.column_names
    assert len(list((out / "data").iterdir())) > 1
    assert rows["key"][:] == by_card["key"][:] == reader.keys
    for position, row in enumerate(rows):
        tokens, logits = reader.read_tokens(position), reader.read_logits(position)
        assert (row["text"], row["source_id"], row["layer"]) == (tokens.text, tokens.source_id, tokens.layer)
        for column, array in (
            ("input_ids", tokens.input_ids), ("loss_mask", tokens.loss_mask), ("positions", logits.positions),
            ("log_partitions", logits.log_partition), ("next_logprob", logits.next_logprob),
            ("byte_end", tokens.byte_end),
        ):  # fmt: skip
            np.testing.assert_array_equal(np.array(row[column], array.dtype).reshape(array.shape), array)
        for p, count in enumerate(logits.counts):
            assert row["ids"][p] == logits.ids[p, :count].tolist()
            np.testing.assert_array_equal(np.float32(row["logprobs"][p]), logits.logprobs[p, :count])


def test_rows_predict_the_token_that_follows(tmp_path: Path) -> None:
    """From the file alone: next_logprob, stored separately and more finely, agrees with the realised token's entry."""
    _, out = exported(tmp_path, CAPTURES["top_k"])
    found = 0
    for row in pq.read_table(out / "data/train-00000.parquet").to_pylist():
        for p, t in enumerate(row["positions"]):
            following = row["input_ids"][t + 1]
            if following in row["ids"][p]:
                entry = row["logprobs"][p][row["ids"][p].index(following)]
                assert entry == pytest.approx(row["next_logprob"][p], abs=1 / 32 + 1 / 2048)
                found += 1
    assert found > 10


@pytest.mark.parametrize("name", CAPTURES)
def test_what_is_imported_is_what_was_exported(tmp_path: Path, name: str) -> None:
    url, out = exported(tmp_path, CAPTURES[name], tokens_per_file=10)
    again = str(tmp_path / "again")
    made = import_files(str(out), again, "parquet", CapturedOptions(), 20, silent)
    assert made.shards > 1
    assert verify(again).problems == []
    before, after = read_manifest(Storage(url)), read_manifest(Storage(again))
    for part in ("teacher", "tokenizer", "corpus", "capture", "codec", "provenance"):
        assert getattr(after, part) == getattr(before, part)
    assert after.derived is not None
    assert after.derived.action == "import"
    assert [source.manifest_sha256 for source in after.derived.sources] == [before.digest()]
    first, second = CacheReader(url), CacheReader(again)
    assert first.keys == second.keys
    for position in range(len(first)):
        for read in ("read_tokens", "read_logits"):
            wanted, found = vars(getattr(first, read)(position)), vars(getattr(second, read)(position))
            for field, value in wanted.items():
                np.testing.assert_array_equal(found[field], value, err_msg=field)


def test_the_card_and_the_metadata_say_what_it_is(tmp_path: Path) -> None:
    url, out = exported(tmp_path, CAPTURES["nucleus"])
    manifest = read_manifest(Storage(url))
    card = (out / "README.md").read_text()
    assert manifest.digest() in card
    assert "path: data/train-*.parquet" in card
    facts = json.loads(pq.read_schema(out / "data/train-00000.parquet").metadata[b"teacher_cache"])
    assert facts["source"]["manifest_sha256"] == manifest.digest()
    assert facts["logits"]["policy"] == "nucleus"
