"""The Python interface to a cache gives what the reader decodes, lazily, by position or key."""

import doctest
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import teacher_cache.api as api
from schemas.errors import UserError
from support.synthetic import random_shards, write_cache
from teacher_cache.api import Cache, open_cache
from teacher_cache.shards.reader import CacheReader

GOLDEN = str(Path(__file__).parents[1] / "fixtures/format-1")
LENGTHS = [[9, 5], [7], [4, 8]]


@pytest.fixture
def url(tmp_path: Path) -> str:
    write_cache(str(tmp_path / "cache"), random_shards(LENGTHS))
    return str(tmp_path / "cache")


def test_the_examples_of_the_docstrings_hold(url: str) -> None:
    done = doctest.testmod(api, extraglobs={"url": url})
    assert done.attempted > 10
    assert done.failed == 0


def test_samples_are_those_of_the_reader(url: str) -> None:
    cache, reader = open_cache(url), CacheReader(url)
    assert cache.keys() == reader.keys
    assert [len(sample) for sample in cache] == [n for shard in LENGTHS for n in shard]
    assert [sample.position for sample in cache[::-2]] == [4, 2, 0]
    for position, key in enumerate(reader.keys):
        for sample in (cache[position], cache[position - 5], cache[key]):
            assert (sample.position, sample.key) == (position, key)
            tokens, logits = reader.read_tokens(position), reader.read_logits(position)
            assert (sample.text, sample.source_id, sample.layer) == (tokens.text, tokens.source_id, tokens.layer)
            np.testing.assert_array_equal(sample.input_ids, tokens.input_ids)
            np.testing.assert_array_equal(sample.loss_mask, tokens.loss_mask)
            for name, array in vars(logits).items():
                np.testing.assert_array_equal(getattr(sample.logits, name), array)


def test_missing_samples_signals_and_temperatures_raise_their_errors(url: str) -> None:
    cache = open_cache(url)
    for position in (5, -6):
        with pytest.raises(IndexError, match="of 5"):
            cache[position]
    with pytest.raises(KeyError, match="no sample 'x' among 5"):
        cache["x"]
    assert "x" not in cache
    assert 3 not in cache
    with pytest.raises(UserError, match="temperature 2 is not stored; the cache has 1, 3"):
        cache[0].probabilities(2.0)
    with pytest.raises(UserError, match="has no draws signal"):
        _ = cache[0].draws
    with pytest.raises(UserError, match="opened without the signal logits"):
        _ = open_cache(url, signals=[])[0].logits
    with pytest.raises(UserError, match="opened without the signal logits"):
        open_cache(url, signals=[]).batch([0], temperature=1.0)
    with pytest.raises(UserError, match="give a list"):
        open_cache(url, signals="logits")
    with pytest.raises(UserError, match="no hidden signal"):
        open_cache(url, signals=["hidden"])


def test_keys_are_found_after_every_index_was_read_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, read = open_cache(url), []
    index = CacheReader.index
    monkeypatch.setattr(CacheReader, "index", lambda self, shard: read.append(shard) or index(self, shard))
    assert "x" not in cache
    assert sorted(read) == [0, 1, 2]
    read.clear()
    assert "y" not in cache
    assert read == []


def test_keys_of_equal_hash_are_told_apart(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_hash", lambda key: 7)
    cache = open_cache(url)
    assert [cache[key].position for key in cache.keys()] == list(range(5))  # noqa: SIM118
    assert "x" not in cache


@pytest.mark.parametrize("by_key", [False, True])
def test_a_batch_holds_the_samples_padded(url: str, by_key: bool) -> None:
    cache = open_cache(url)
    chosen = [4, 1]
    batch = cache.batch([cache.keys()[at] for at in chosen] if by_key else chosen, temperature=3.0, length=10)
    assert batch["input_ids"].shape == (2, 10)
    assert batch["ids"].dtype == batch["input_ids"].dtype == torch.int64
    for r, position in enumerate(chosen):
        sample = cache[position]
        n, rows = len(sample), sample.logits.positions
        assert batch["attention_mask"][r].tolist() == [t < n for t in range(10)]
        np.testing.assert_array_equal(batch["input_ids"][r, :n], sample.input_ids)
        np.testing.assert_array_equal(batch["logprobs"][r, rows], sample.logits.logprobs)
        np.testing.assert_array_equal(batch["probabilities"][r, rows], sample.probabilities(3.0))
        assert batch["probabilities"][r, n:].sum() == 0
    with pytest.raises(ValueError, match="does not fit"):
        cache.batch([0], length=8)


def test_batches_are_decoded_ahead(url: str) -> None:
    cache = open_cache(url)
    wanted = [[4, 0], [cache.keys()[1], 3], [2]]
    for found, samples in zip(cache.batches(wanted, temperature=3.0, length=12), wanted, strict=True):
        expected = cache.batch(samples, temperature=3.0, length=12)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(KeyError, match="no sample 'x'"):
        list(cache.batches([[0], ["x"]]))


def test_probabilities_are_softened_at_the_temperature(url: str) -> None:
    """By hand, from the definition of the log-partition."""
    logits = open_cache(url)[0].logits
    wanted = np.exp(logits.logprobs / 3) / np.exp(logits.log_partition[:, [1]])
    np.testing.assert_allclose(open_cache(url)[0].probabilities(3.0), wanted, rtol=1e-5)


def test_all_signals_of_a_real_cache_are_there_as_arrays_and_tensors() -> None:
    cache, reader = open_cache(GOLDEN), CacheReader(GOLDEN)
    manifest = cache.manifest
    assert set(cache.signals) == {"tokens", "logits", "draws", "final", "hidden", "attention"}
    sample, tensors = cache[1], cache[1].to_torch()
    assert manifest.capture.hidden is not None
    width = manifest.teacher.hidden_size
    assert sample.hidden.values.shape == (len(sample.hidden.positions), len(sample.hidden.layers), width)
    assert sample.hidden.layers == tuple(manifest.capture.hidden.layer_numbers(manifest.teacher.num_layers))
    assert sample.final.values.shape == (len(sample.final.positions), width)
    np.testing.assert_array_equal(tensors["hidden"], sample.hidden.values)
    np.testing.assert_array_equal(tensors["final"], sample.final.values)
    np.testing.assert_array_equal(tensors["draws"], sample.draws.ids)
    np.testing.assert_array_equal(tensors["attention"], sample.attention.weights)
    for name in ("hidden", "final", "draws", "attention"):
        np.testing.assert_array_equal(tensors[f"{name}_positions"], getattr(sample, name).positions)
    assert tensors["input_ids"].shape == (len(sample),)
    assert tensors["attention_mask"].all()
    head = reader.read_head()  # the final hidden states are what the stored log-probabilities follow from
    logits = head.logits(torch.from_numpy(sample.final.values))
    best = logits.argmax(dim=1)
    assert (best.numpy() == sample.logits.ids[:, 0]).mean() > 0.95  # they are rounded to 8 bits


def test_it_is_a_data_set_for_workers(url: str) -> None:
    cache: Cache = pickle.loads(pickle.dumps(open_cache(url)))
    loader = torch.utils.data.DataLoader(cache, batch_size=2, collate_fn=cache.collate)  # type: ignore[arg-type]
    assert [batch["input_ids"].shape for batch in loader] == [(2, 9), (2, 7), (1, 8)]


def test_it_reads_from_a_store_with_local_copies(s3_url: str, tmp_path: Path) -> None:
    write_cache(s3_url, random_shards(LENGTHS))
    with open_cache(s3_url, signals=["logits"], copies=(str(tmp_path / "copies"), 1 << 20)) as cache:
        key = cache.keys()[3]
        assert cache[key].position == 3
        assert cache[key].logits.ids.shape == (3, 8)
    assert any((tmp_path / "copies").iterdir())
