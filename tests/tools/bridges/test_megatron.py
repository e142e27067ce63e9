"""Megatron-LM's own reader finds the cache's tokens and rows in the exported data sets."""

import re
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from schemas.cache_config import LogitsCapture
from schemas.errors import UserError
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.reader import CacheReader
from tools.bridges import indexed_dataset
from tools.bridges.export import export

CAPTURES = {
    "top_k": LogitsCapture(k=8),
    "all_rows": LogitsCapture(k=8, positions="all"),
    "nucleus": LogitsCapture(policy="nucleus", k=32, mass=0.5),
}


def exported(folder: Path, capture: LogitsCapture, vocab_size: int = 300) -> tuple[CacheReader, Path]:
    """A cache of two shards, with rows partly in the loss mask; and its export."""
    url, out = str(folder / "cache"), folder / "out"
    shards = random_shards([[9, 5, 30], [7, 12]], vocab_size, capture, counting=0.7)
    write_cache(url, shards, vocab_size, capture)
    export(url, str(out), "megatron", None, None, lambda *_: None)
    return CacheReader(url), out


@pytest.mark.parametrize("name", CAPTURES)
def test_megatron_reads_the_values_of_the_cache(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    k = CAPTURES[name].k
    monkeypatch.setattr("tools.bridges.export.VALUES_AT_A_TIME", 12 * k)  # several batches
    reader, out = exported(tmp_path, CAPTURES[name])
    tokens, mask, ids, logprobs = (
        IndexedDataset(str(out / name)) for name in ("tokens", "loss_mask", "target_ids", "target_logprobs")
    )
    for data_set in (tokens, mask, ids, logprobs):
        assert len(data_set) == len(reader) == 5
        np.testing.assert_array_equal(data_set.document_indices, np.arange(6))
    stored = 0
    for number in range(len(reader)):
        sample, logits = reader.read_tokens(number), reader.read_logits(number)
        np.testing.assert_array_equal(tokens[number], sample.input_ids)
        np.testing.assert_array_equal(mask[number], sample.loss_mask)
        found_SK = logprobs[number].reshape(-1, k)
        is_stored_PK = np.isfinite(logits.logprobs)
        np.testing.assert_array_equal(found_SK[logits.positions][is_stored_PK], logits.logprobs[is_stored_PK])
        np.testing.assert_array_equal(ids[number].reshape(-1, k)[logits.positions], logits.ids)
        assert len(found_SK) == len(sample.input_ids)
        assert (np.delete(found_SK, logits.positions, axis=0) == -1e4).all()
        stored += int((found_SK > -1e4).sum())
        piece = logprobs.get(number, offset=2 * k, length=3 * k).reshape(-1, k)
        np.testing.assert_array_equal(piece, found_SK[2:5])
    assert stored == sum(int(reader.read_logits(number).counts.sum()) for number in range(len(reader)))


@pytest.mark.parametrize("vocab_size", [65_499, 65_500])
def test_tokens_have_the_dtype_that_megatron_chooses(tmp_path: Path, vocab_size: int) -> None:
    reader, out = exported(tmp_path, CAPTURES["top_k"], vocab_size)
    tokens = IndexedDataset(str(out / "tokens"))
    assert tokens[0].dtype == DType.optimal_dtype(vocab_size)
    np.testing.assert_array_equal(tokens[0], reader.read_tokens(0).input_ids)


def test_a_sequence_that_the_format_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed_dataset, "MAX_LENGTH", 30 * 8 - 1)
    with pytest.raises(UserError, match="target_ids: a sequence of 240 values, wanted at most 239"):
        exported(tmp_path, CAPTURES["top_k"])
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_the_card_shows_how_to_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, out = exported(tmp_path, CAPTURES["top_k"])
    monkeypatch.chdir(out)
    (snippet,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    found: dict[str, np.ndarray] = {}
    exec(snippet, found)
    np.testing.assert_array_equal(found["piece"], reader.read_tokens(0).input_ids[1:5])
    np.testing.assert_array_equal(found["its_rows"], found["row_of_each_token"][1:5])
