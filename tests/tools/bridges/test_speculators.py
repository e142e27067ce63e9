"""speculators' own data set finds the verifier's hidden states, as transformers computes them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from speculators.models.eagle3.data import shift_batch
from speculators.train.data import ArrowDataset
from transformers import AutoModelForCausalLM, PreTrainedModel

from schemas.cache_config import HiddenCapture
from schemas.errors import UserError
from support.models import VOCAB_SIZE
from teacher_cache.shards.reader import CacheReader
from teacher_cache.signals.hidden.record import HiddenSample
from tools.bridges.export import export, make_layout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, verifier_cache: str) -> Path:
    """The export of the verifier's cache."""
    folder = tmp_path_factory.mktemp("speculators") / "out"
    made = export(verifier_cache, str(folder), "speculators", None, None, lambda *_: None)
    assert made.samples == 5
    assert made.rows == made.tokens
    assert made.files == 5 + 1  # hidden states, and the table
    return folder


@pytest.fixture(scope="module")
def model(verifier_cache: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(Path(verifier_cache).parent / "teacher", dtype=torch.float32)


def test_speculators_reads_what_the_teacher_computes(verifier_cache: str, folder: Path, model: PreTrainedModel) -> None:
    reader = CacheReader(verifier_cache)
    data = ArrowDataset(1000, folder, on_missing="raise", hidden_states_dtype=torch.float32)
    assert len(data) == len(reader) == 5
    for number in range(len(data)):
        sample, found = reader.read_tokens(number), data[number]
        assert isinstance(found, dict)
        assert found["input_ids"].tolist() == sample.input_ids.tolist()
        assert data.approx_lengths[number] == len(sample.input_ids)
        with torch.no_grad():
            wanted = model(found["input_ids"][None], output_hidden_states=True)
            normed_SD = model.model.norm(found["verifier_last_hidden_states"])
            logits_SV = model.lm_head(normed_SD)
        first, second, last = (states[0] for states in wanted.hidden_states[1:])  # the last is behind the norm
        rounding = {"rtol": 2**-8, "atol": 1e-6}
        torch.testing.assert_close(found["hidden_states"], torch.cat([first, second], dim=1), **rounding)
        torch.testing.assert_close(normed_SD, last, rtol=2**-7, atol=1e-6)
        torch.testing.assert_close(logits_SV, wanted.logits[0], rtol=0, atol=0.02 * float(wanted.logits.std()))


def test_the_tokens_to_be_learned_are_those_of_the_mask(verifier_cache: str, folder: Path) -> None:
    """speculators pairs state t with token t + 1, whose mask it takes: our row t, which predicts that token."""
    reader = CacheReader(verifier_cache)
    data = ArrowDataset(1000, folder, on_missing="raise")
    for number in range(len(data)):
        sample, shifted = reader.read_tokens(number), shift_batch(data[number])
        assert 0 < sample.loss_mask.sum() < len(sample.input_ids) - 1
        np.testing.assert_array_equal(shifted["loss_mask"].numpy(), sample.loss_mask[:-1])
        np.testing.assert_array_equal(shifted["input_ids"].numpy(), sample.input_ids[1:])
        kept = data[number]["input_ids"][data[number]["loss_mask"].bool()]
        np.testing.assert_array_equal(kept.numpy(), sample.input_ids[np.flatnonzero(sample.loss_mask) + 1])


def test_the_card_shows_how_to_use_it(verifier_cache: str, folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "--on-missing raise --target-layer-ids 1 2\n" in card
    assert "- hidden states in the cache: layers 1, 2, 3, bfloat16" in card
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(snippet.replace("THIS_FOLDER", str(folder)), {})
    counts = torch.load(folder / "token_freq.pt", weights_only=True)
    reader = CacheReader(verifier_cache)
    learned = [
        reader.read_tokens(number).input_ids[1:][reader.read_tokens(number).loss_mask[:-1]] for number in range(5)
    ]
    wanted = np.bincount(np.concatenate(learned), minlength=VOCAB_SIZE)
    assert {token: int(count) for token, count in enumerate(wanted) if count} == counts


@pytest.mark.parametrize(
    ("hidden", "seen"),
    [
        (None, "no hidden states"),
        (HiddenCapture(layers=[1, 2], positions="all"), "layers 1, 2"),
        (HiddenCapture(layers=[1, 3], positions="loss_mask"), "positions: loss_mask"),
    ],
)
def test_a_cache_without_what_it_needs_is_refused(verifier_cache: str, hidden: HiddenCapture | None, seen: str) -> None:
    manifest = CacheReader(verifier_cache).manifest
    manifest = manifest.model_copy(update={"capture": manifest.capture.model_copy(update={"hidden": hidden})})
    with pytest.raises(UserError, match=rf"the cache has {seen}, wanted all rows .* of layer 3, the last"):
        make_layout("speculators", manifest, None)


def test_a_sample_without_all_rows_is_refused(verifier_cache: str, tmp_path: Path) -> None:
    reader = CacheReader(verifier_cache)
    tokens, whole = reader.read_tokens(0), reader.read_hidden(0)
    fewer = HiddenSample(**{name: rows[1:] for name, rows in vars(whole).items()})
    with pytest.raises(UserError, match=rf"sample {tokens.key}: .* rows of hidden states, wanted one for each"):
        make_layout("speculators", reader.manifest, None).write([[(tokens, fewer)]], tmp_path, 1)
