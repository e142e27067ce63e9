import pytest
import torch

from schemas.errors import UserError
from schemas.train_config import LossConfig
from trainer.data import to_tensors
from trainer.losses.cross_entropy import cross_entropy_per_token
from trainer.losses.objective import Objective, teacher_rows
from trainer.losses.tla import tla_per_token


def losses(**groups: dict) -> LossConfig:
    return LossConfig.model_validate(groups)


def test_rows_align_with_the_token_that_follows(cache) -> None:
    batch = to_tensors(cache.read_rows([[0, 3], [5]]), packed=True)
    rows = teacher_rows(batch)
    expected = []
    for sample in (0, 3, 5):
        ids, mask = cache.samples[sample]["input_ids"], cache.samples[sample]["loss_mask"]
        expected += [ids[t + 1] for t in range(len(ids)) if mask[t]]
    assert rows.next_ids_N.tolist() == expected
    assert torch.isfinite(rows.next_logprob_N).all()
    assert len(rows.ids_NK) == int(batch["loss_mask"].sum())


def test_terms_use_the_temperatures_own_column_and_the_schedule(cache) -> None:
    rows = teacher_rows(to_tensors(cache.read_rows([[0], [1]]), packed=False))
    logits = torch.randn(len(rows.next_ids_N), 61, generator=torch.Generator().manual_seed(0))
    objective = Objective(
        losses(tla={"temperature": 2.0}, cross_entropy={"weight": {"start": 0, "end": 1}}), [1.0, 2.0]
    )
    tla, hard = objective.terms(logits, rows, progress=0.5)
    assert (tla.name, hard.name) == ("tla", "cross_entropy")
    assert (tla.weight, hard.weight) == (pytest.approx(0.65), 0.5)
    partition_1, partition_2 = rows.log_partition_NT.unbind(1)
    expected = tla_per_token(logits, rows.ids_NK, rows.logprobs_NK, partition_1, partition_2, 2.0).sum()
    torch.testing.assert_close(tla.total, expected)
    torch.testing.assert_close(hard.total, cross_entropy_per_token(logits, rows.next_ids_N).sum())


def test_a_term_that_never_counts_is_not_computed(cache) -> None:
    rows = teacher_rows(to_tensors(cache.read_rows([[0]]), packed=False))
    logits = torch.zeros(len(rows.next_ids_N), 61)
    only_hard = losses(tla={"weight": {"start": 0, "end": 0}}, cross_entropy={"weight": {"start": 1, "end": 1}})
    assert [term.name for term in Objective(losses(), [1.0]).terms(logits, rows, 0)] == ["tla"]
    assert [term.name for term in Objective(only_hard, [1.0]).terms(logits, rows, 0)] == ["cross_entropy"]


def test_temperature_must_be_one_of_the_caches() -> None:
    with pytest.raises(UserError, match=r"losses.tla.temperature: 5.0 is not among .*\[1.0, 2.0\]"):
        Objective(losses(tla={"temperature": 5.0}), [1.0, 2.0])
