"""The chunked pass over the head against plain autograd through whole logits."""

import pytest
import torch

from support.reference_rows import dense_kl, sparse_rows, target_of
from teacher_cache.output_head import OutputHead
from trainer.losses import head_chunks, lean
from trainer.losses.cross_entropy import cross_entropy_
from trainer.losses.lean import _add_product, adds_in_float32, head_loss, logits_loss
from trainer.losses.tla import tla_

N, D, V = 11, 6, 23
WEIGHTS = (0.7, 0.4)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows at a time."""
    monkeypatch.setattr(head_chunks, "CPU_BYTES", 4 * 4 * V)


def problem(dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    bias = torch.randn(V, dtype=dtype, requires_grad=True)
    teacher = torch.randn(N, V, dtype=torch.float64) * 2
    return hidden, weight, bias, teacher, torch.randint(0, V, (N,))


def loss_of_rows(teacher: torch.Tensor, next_ids: torch.Tensor):
    target = target_of(sparse_rows(teacher, V, 2.0), V, 2.0)

    def loss(logits, rows):
        hard, by_hard = cross_entropy_(logits.clone(), next_ids[rows])
        soft, by_soft = tla_(logits, target.rows(rows), 2.0)
        return [soft.sum(), hard.sum()], WEIGHTS[0] * by_soft + WEIGHTS[1] * by_hard

    return loss


def plain(hidden, weight, bias, teacher, next_ids, scale, softcap) -> torch.Tensor:
    logits = scale * (hidden @ weight.T + (0 if bias is None else bias))
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    hard = torch.nn.functional.cross_entropy(logits, next_ids, reduction="sum")
    return WEIGHTS[0] * dense_kl(logits, teacher, 2.0).sum() + WEIGHTS[1] * hard


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.5, 3.0)])
def test_equals_plain_autograd_in_float64(with_bias: bool, scale: float, softcap: float | None) -> None:
    hidden, weight, bias, teacher, next_ids = problem()
    leaves = [hidden, weight, *([bias] if with_bias else [])]
    head = OutputHead(weight, bias if with_bias else None, scale, softcap)
    value, totals = head_loss(hidden, head, WEIGHTS, loss_of_rows(teacher, next_ids))
    expected = plain(hidden, weight, bias if with_bias else None, teacher, next_ids, scale, softcap)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(WEIGHTS[0] * totals[0] + WEIGHTS[1] * totals[1], value.detach())
    ours = torch.autograd.grad(3 * value, leaves)
    for gradient, reference in zip(ours, torch.autograd.grad(3 * expected, leaves), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-9)


def test_a_tied_head_gets_both_gradients() -> None:
    _, weight, _, teacher, next_ids = problem()
    ids = torch.arange(N)
    value, _ = head_loss(weight[ids] ** 2, OutputHead(weight), WEIGHTS, loss_of_rows(teacher, next_ids))
    (ours,) = torch.autograd.grad(value, weight)
    (reference,) = torch.autograd.grad(plain(weight[ids] ** 2, weight, None, teacher, next_ids, 1.0, None), weight)
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


class Recomputed(torch.autograd.Function):
    """``head_loss`` anew for every backward pass: gradcheck takes several."""

    @staticmethod
    def forward(ctx, hidden, weight, loss):
        ctx.save_for_backward(hidden, weight)
        ctx.loss = loss
        return head_loss(hidden, OutputHead(weight), WEIGHTS, loss)[0]

    @staticmethod
    def backward(ctx, by_value):
        leaves = [leaf.detach().requires_grad_() for leaf in ctx.saved_tensors]
        with torch.enable_grad():
            value, _ = head_loss(leaves[0], OutputHead(leaves[1]), WEIGHTS, ctx.loss)
        return (*torch.autograd.grad(value, leaves, by_value), None)


def test_gradcheck() -> None:
    hidden, weight, _, teacher, next_ids = problem()
    assert torch.autograd.gradcheck(
        lambda h, w: Recomputed.apply(h, w, loss_of_rows(teacher, next_ids)), (hidden, weight)
    )


@pytest.mark.parametrize("by_autocast", [False, True])
def test_bf16_products_with_losses_in_float32(by_autocast: bool) -> None:
    hidden, weight, _, teacher, next_ids = problem(torch.float32)
    exact, _ = head_loss(hidden, OutputHead(weight), WEIGHTS, loss_of_rows(teacher, next_ids))
    expected = torch.autograd.grad(exact, (hidden, weight))
    dtype = torch.float32 if by_autocast else torch.bfloat16
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in (hidden, weight)]
    with torch.autocast("cpu", torch.bfloat16, enabled=by_autocast):
        value, totals = head_loss(leaves[0], OutputHead(leaves[1]), WEIGHTS, loss_of_rows(teacher, next_ids))
    assert value.dtype == totals.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-2)
    for gradient, reference in zip(torch.autograd.grad(value, leaves), expected, strict=True):
        assert gradient.dtype == dtype
        assert torch.nn.functional.cosine_similarity(gradient.float().flatten(), reference.flatten(), dim=0) > 0.999


def test_frozen_parts_get_no_gradient() -> None:
    hidden, weight, _, teacher, next_ids = problem()
    value, _ = head_loss(hidden, OutputHead(weight.detach()), WEIGHTS, loss_of_rows(teacher, next_ids))
    (ours,) = torch.autograd.grad(value, hidden)
    (reference,) = torch.autograd.grad(plain(hidden, weight, None, teacher, next_ids, 1.0, None), hidden)
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


def test_no_rows() -> None:
    hidden, weight, _, teacher, next_ids = problem()
    value, totals = head_loss(hidden[:0], OutputHead(weight), WEIGHTS, loss_of_rows(teacher, next_ids))
    assert value.item() == 0
    assert totals.tolist() == [0, 0]
    value.backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0


def test_a_second_backward_pass_is_an_error() -> None:
    hidden, weight, _, teacher, next_ids = problem()
    value, _ = head_loss(hidden, OutputHead(weight), WEIGHTS, loss_of_rows(teacher, next_ids))
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward through head_loss was called twice"):
        value.backward()


def test_products_of_16_bits_are_added_in_float32_where_the_device_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA's ``addmm`` in float32 arithmetic: closer to the exact gradient than with rounded products."""

    def addmm(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, out_dtype, out: torch.Tensor) -> None:
        assert (out_dtype, left.dtype, right.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
        assert out is total
        out += left.float() @ right.float()

    hidden, weight, _, teacher, next_ids = problem(torch.float32)
    hidden, weight = (leaf.detach().bfloat16().float().requires_grad_() for leaf in (hidden, weight))
    exact, _ = head_loss(hidden, OutputHead(weight), WEIGHTS, loss_of_rows(teacher, next_ids))
    (expected,) = torch.autograd.grad(exact, weight)
    errors = []
    for fused in (False, True):
        monkeypatch.setattr(lean, "adds_in_float32", lambda *_, fused=fused: fused)
        monkeypatch.setattr(torch, "addmm", addmm)
        with torch.autocast("cpu", torch.bfloat16):
            value, _ = head_loss(hidden, OutputHead(weight), WEIGHTS, loss_of_rows(teacher, next_ids))
        (gradient,) = torch.autograd.grad(value, weight)
        errors.append((gradient - expected).norm() / expected.norm())
    assert errors[1] < 0.01
    assert errors[1] < errors[0]


def test_the_arguments_of_addmm_are_those_of_the_installed_torch() -> None:
    total = torch.zeros(V, D, device="meta")
    left, right = (torch.zeros(shape, dtype=torch.bfloat16, device="meta") for shape in ((V, N), (N, D)))
    _add_product(total, left, right, fused=True)


def test_the_cpu_has_no_sum_in_another_dtype() -> None:
    assert not adds_in_float32(torch.device("cpu"), torch.bfloat16)
    assert not adds_in_float32(torch.device("cuda"), torch.float32)


def test_logits_that_exist_have_the_same_losses_and_gradients() -> None:
    hidden, weight, _, teacher, next_ids = problem()
    logits = (hidden @ weight.T).detach().requires_grad_()
    before = logits.detach().clone()
    value, totals = logits_loss(logits, WEIGHTS, loss_of_rows(teacher, next_ids))
    expected, expected_totals = head_loss(hidden, OutputHead(weight), WEIGHTS, loss_of_rows(teacher, next_ids))
    torch.testing.assert_close((value, totals), (expected, expected_totals), rtol=1e-12, atol=0)
    plain_logits = before.clone().requires_grad_()
    hard = torch.nn.functional.cross_entropy(plain_logits, next_ids, reduction="sum")
    (3 * (WEIGHTS[0] * dense_kl(plain_logits, teacher, 2.0).sum() + WEIGHTS[1] * hard)).backward()
    (3 * value).backward()
    torch.testing.assert_close(logits.grad, plain_logits.grad, rtol=1e-6, atol=1e-9)
    assert torch.equal(logits, before)
    with pytest.raises(RuntimeError, match="called twice"):
        value.backward()


def test_gradients_of_16_bit_logits_are_of_their_type() -> None:
    _, _, _, teacher, next_ids = problem(torch.float32)
    exact = torch.randn(N, V, requires_grad=True)
    rounded = exact.detach().bfloat16().requires_grad_()
    for logits in (exact, rounded):
        logits_loss(logits, WEIGHTS, loss_of_rows(teacher, next_ids))[0].backward()
    assert rounded.grad.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.grad.float(), exact.grad, rtol=0.05, atol=0.02)
