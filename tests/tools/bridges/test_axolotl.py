"""Axolotl's layout: targets at the predicting row, labels at the predicted token."""

from pathlib import Path

import datasets
import numpy as np
import pytest

from schemas.cache_config import LogitsCapture
from schemas.errors import UserError
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.reader import CacheReader
from tools.bridges.export import export

CAPTURES = {
    "top_k": LogitsCapture(k=32),
    "all_rows": LogitsCapture(k=8, positions="all"),
    "nucleus": LogitsCapture(policy="nucleus", k=32, mass=0.5),
}


@pytest.mark.parametrize("name", CAPTURES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_datasets_reads_prepared_sequences(tmp_path: Path, name: str, temperature: float) -> None:
    capture = CAPTURES[name]
    url, out = str(tmp_path / "cache"), str(tmp_path / "out")
    write_cache(url, random_shards([[9, 5, 30], [7, 12]], capture=capture, counting=0.7), capture=capture)
    export(url, out, "axolotl", temperature, 1_000_000, lambda *_: None)
    rows = datasets.load_dataset(out, split="train", cache_dir=str(tmp_path / "hf"))
    reader, found = CacheReader(url), 0
    assert len(rows) == len(reader)
    for position, row in enumerate(rows):
        tokens, logits = reader.read_tokens(position), reader.read_logits(position)
        n = len(tokens.input_ids)
        assert row["input_ids"] == tokens.input_ids.tolist()
        assert row["attention_mask"] == [1] * n
        wanted = [-100] + [int(tokens.input_ids[t + 1]) if tokens.loss_mask[t] else -100 for t in range(n - 1)]
        assert row["labels"] == wanted
        for t in range(n):
            ids, values, mask = (np.array(row[f"target_{what}"][t]) for what in ("token_ids", "logprobs", "mask"))
            assert len(ids) == len(values) == len(mask) == capture.k
            assert (values[mask == 0] == -1e9).all()
            if not tokens.loss_mask[t]:
                assert not mask.any()
                continue
            p = logits.positions.tolist().index(t)
            count = logits.counts[p]
            assert mask.tolist() == [1] * count + [0] * (capture.k - count)
            assert ids[:count].tolist() == logits.ids[p, :count].tolist()
            softened = np.exp(logits.logprobs[p, :count].astype(np.float64)) ** (1 / temperature)
            np.testing.assert_allclose(np.exp(values[:count]), softened / softened.sum(), rtol=1e-5)
            if temperature == 1 and row["labels"][t + 1] in ids[:count]:  # next_logprob is stored separately
                stored_mass = np.exp(logits.logprobs[p, :count]).sum()
                entry = values[ids[:count].tolist().index(row["labels"][t + 1])] + np.log(stored_mass)
                assert entry == pytest.approx(logits.next_logprob[p], abs=1 / 32 + 1 / 1024)
                found += 1
    assert found > 3 or temperature != 1


def test_a_temperature_is_for_axolotl_alone_and_positive(tmp_path: Path) -> None:
    url = str(tmp_path / "cache")
    write_cache(url, random_shards([[5]]))
    for layout, temperature, message in (("axolotl", 0.0, "above 0"), ("parquet", 2.0, "leave it out")):
        with pytest.raises(UserError, match=message):
            export(url, str(tmp_path / "out"), layout, temperature, 1, lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
