import pytest
import torch

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from schemas.train_config import LossConfig
from support.reference_rows import tla
from teacher_cache.output_head import OutputHead
from trainer.data.batches import to_tensors
from trainer.losses.objective import Objective
from trainer.losses.teacher_rows import teacher_rows

HARD_TOO = {
    "tla": {"temperature": 2.0, "weight": {"start": 1.0, "end": 0.3}},
    "cross_entropy": {"weight": {"start": 0, "end": 1}},
}
ONLY_HARD = {"tla": {"weight": {"start": 0, "end": 0}}, "cross_entropy": {"weight": {"start": 1, "end": 1}}}


def losses(**groups: dict) -> LossConfig:
    return LossConfig.model_validate(groups)


def capture(**groups: dict) -> CaptureConfig:
    return CaptureConfig.model_validate({"logits": {"temperatures": [1.0, 2.0]}, **groups})


@pytest.fixture
def student() -> tuple[torch.Tensor, OutputHead]:
    """More final hidden states than are needed, and a head."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=generator, requires_grad=True)
    return hidden, OutputHead(torch.randn(61, 16, generator=generator, requires_grad=True))


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


def test_terms_use_the_temperatures_own_column_and_the_schedule(cache, student) -> None:
    rows = teacher_rows(to_tensors(cache.read_rows([[0], [1]]), packed=False))
    hidden, head = student[0][: len(rows.next_ids_N)], student[1]
    objective = Objective(losses(**HARD_TOO), capture())
    loss, (soft, hard) = objective.head_terms(hidden, head, rows, progress=0.5)
    assert (soft.name, hard.name) == ("tla", "cross_entropy")
    assert (soft.weight, hard.weight) == (pytest.approx(0.65), 0.5)
    logits = (hidden @ head.weight_VD.T).detach()
    stored = (rows.ids_NK, rows.logprobs_NK, rows.log_partition_NT[:, 1])
    torch.testing.assert_close(soft.total, tla(logits, stored, 2.0).sum())
    torch.testing.assert_close(
        hard.total, torch.nn.functional.cross_entropy(logits, rows.next_ids_N.long(), reduction="sum")
    )
    torch.testing.assert_close(loss, soft.weight * soft.total + hard.weight * hard.total)


def test_terms_apart_have_the_same_totals_and_their_gradients_add_up(cache, student) -> None:
    rows = teacher_rows(to_tensors(cache.read_rows([[0], [1]]), packed=False))
    hidden, head = student[0][: len(rows.next_ids_N)], student[1]
    objective = Objective(losses(**HARD_TOO), capture())
    leaves = (student[0], head.weight_VD)
    loss, together = objective.head_terms(hidden, head, rows, 0.5)
    apart = objective.head_terms_apart(hidden, head, rows, 0.5)
    gradients = [torch.autograd.grad(term.weight * term.total, leaves) for term in apart]
    for one, other in zip(together, apart, strict=True):
        assert (one.name, one.weight) == (other.name, other.weight)
        torch.testing.assert_close(one.total, other.total.detach())
    for whole, *parts in zip(torch.autograd.grad(loss, leaves), *gradients, strict=True):
        torch.testing.assert_close(whole, sum(parts))


def test_a_term_of_weight_zero_is_not_computed(cache, student) -> None:
    rows = teacher_rows(to_tensors(cache.read_rows([[0]]), packed=False))
    hidden, head = student[0][: len(rows.next_ids_N)], student[1]
    for config, names in ((losses(), ["tla"]), (losses(**ONLY_HARD), ["cross_entropy"])):
        _, terms = Objective(config, capture()).head_terms(hidden, head, rows, 0)
        assert [term.name for term in terms] == names


def test_temperature_must_be_one_of_the_caches() -> None:
    with pytest.raises(UserError, match=r"losses.tla.temperature: 5.0 is not among \[1.0, 2.0\], .* top_k target"):
        Objective(losses(tla={"temperature": 5.0}), capture())
