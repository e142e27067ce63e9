import numpy as np
import pytest

from schemas.errors import UserError
from trainer.data import calibration
from trainer.data.calibration import calibration_batches, calibration_rows
from trainer.data.open_caches import open_cache
from trainer.data.selection import Selection


@pytest.fixture
def tokens(real_cache):
    cache = open_cache(str(real_cache), ("tokens",))
    yield cache
    cache.close()


def test_samples_are_spread_over_the_cache(tokens) -> None:
    rows = calibration_rows(tokens, Selection(), 8)
    assert sorted(rows.samples.tolist()) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert rows.num_tokens == sum(tokens.num_tokens[rows.samples])


def test_all_samples_if_there_are_fewer(tokens) -> None:
    assert sorted(calibration_rows(tokens, Selection(), 1000).samples.tolist()) == list(range(40))


def test_held_out_samples_are_left_out(tokens) -> None:
    whole = calibration_rows(tokens, Selection(), 40).samples
    trained = calibration_rows(tokens, Selection(validation_fraction=0.4), 40).samples
    held_out = calibration_rows(tokens, Selection(validation_fraction=0.4, held_out=True), 40).samples
    assert 0 < len(trained) < 40
    assert sorted([*trained, *held_out]) == sorted(whole)


def test_few_indexes_are_read_unless_they_hold_too_few(tokens, monkeypatch) -> None:
    monkeypatch.setattr(calibration, "MAX_SHARDS", 2)
    assert {sample // 10 for sample in calibration_rows(tokens, Selection(), 8).samples.tolist()} == {0, 3}
    assert len(calibration_rows(tokens, Selection(), 30).samples) == 30


def test_a_selection_without_samples_is_refused(tokens) -> None:
    with pytest.raises(UserError, match="no sample to measure activations on"):
        calibration_rows(tokens, Selection(layers=("code",)), 8)


def test_batches_are_the_tokens_padded_on_the_right(tokens) -> None:
    rows = calibration_rows(tokens, Selection(), 10)
    read = []
    for batch in calibration_batches(tokens, rows):
        assert (
            not batch["attention_mask"].diff(dim=1).gt(0).any() or not batch["attention_mask"].dtype.is_floating_point
        )
        read += [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert read == [tokens.read_tokens(sample).input_ids.tolist() for sample in rows.samples.tolist()]
    assert len(np.unique([len(one) for one in read])) > 1
