import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.tensor_memory import TensorMemory
from teacher_cache.query_key import QueryKey
from teacher_cache.signals.attention.capture import attention_scores
from trainer.losses.apc import CHUNK_WEIGHTS, _chunks, apc_of_sequence, apc_per_row, most_focused, row_entropies

STEP = 1 / 65535  # of the cache's weights


def causal_rows(n: int, r: int, s: int, seed: int, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-softmaxed rows [n, r, s] of two models, float64; -inf after a row's last visible key, the same for both."""
    generator = torch.Generator().manual_seed(seed)
    visible = torch.randint(1, s + 1, (n,), generator=generator)
    masked = (torch.arange(s) >= visible[:, None])[:, None]
    scores = scale * torch.randn(2, n, r, s, generator=generator, dtype=torch.float64)
    teacher, student = scores.masked_fill(masked, -torch.inf).log_softmax(-1)
    return teacher, student


def sparse_rows(log_probs: torch.Tensor, m: int, quantised: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What a cache would hold: the m largest weights (0 in the padding) and their keys, arbitrary in the padding."""
    weights, keys = log_probs.exp().topk(m)
    if quantised:
        weights = (weights / STEP).round() * STEP
    anything = torch.randint(0, log_probs.shape[-1], keys.shape, generator=torch.Generator().manual_seed(seed))
    return weights, torch.where(weights > 0, keys, anything)


def reference_row(weights: list[float], keys: list[int], log_probs: list[float]) -> float:
    """The definition, one entry at a time in float64: merge the keys that are not stored, then the plain KL."""
    stored = {key: weight for weight, key in zip(weights, keys, strict=True) if weight > 0}
    mass = math.fsum(stored.values())
    others = [math.exp(lp) for key, lp in enumerate(log_probs) if key not in stored and lp > -math.inf]
    if mass >= 1 or not others:
        stored, rest = {key: weight / mass for key, weight in stored.items()}, 0.0
    else:
        rest = 1 - mass
    kl = rest * math.log(rest / math.fsum(others)) if rest > 0 else 0.0
    return kl + math.fsum(p * (math.log(p) - log_probs[key]) for key, p in stored.items())


def reference(weights: torch.Tensor, keys: torch.Tensor, log_probs: torch.Tensor) -> np.ndarray:
    n, r, _ = weights.shape
    rows = [
        [reference_row(*(x[i, j].tolist() for x in (weights, keys, log_probs))) for j in range(r)] for i in range(n)
    ]
    return np.array([math.fsum(row) / r for row in rows])


def dense_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    seen = teacher > -torch.inf
    return torch.where(seen, teacher.exp() * (teacher - student), 0).sum(-1).mean(-1)


@st.composite
def problems(draw: st.DrawFn):
    n, r, s = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 20))
    m, seed = draw(st.integers(1, s)), draw(st.integers(0, 2**31))
    teacher, student = causal_rows(n, r, s, seed, draw(st.sampled_from([0.1, 2.0, 10.0])))
    return teacher, student, *sparse_rows(teacher, m, draw(st.booleans()), seed)


@given(problems())
@settings(deadline=None, max_examples=120)
def test_equals_the_definition_on_ragged_rows(problem) -> None:
    _, student, weights, keys = problem
    value = apc_per_row(weights, keys, student)
    np.testing.assert_allclose(value.numpy(), reference(weights, keys, student), rtol=1e-6, atol=1e-9)
    single = apc_per_row(weights.float(), keys.int(), student.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), value, rtol=1e-3, atol=1e-4)


@given(problems())
@settings(deadline=None, max_examples=60)
def test_is_a_lower_bound_of_the_dense_kl_and_not_negative(problem) -> None:
    teacher, student, weights, keys = problem
    value = apc_per_row(weights, keys, student)
    assert (value >= -1e-9).all()
    exact, _ = teacher.exp().topk(weights.shape[-1])
    if torch.equal(exact, weights):  # not quantised
        assert (value <= dense_kl(teacher, student) + 1e-9).all()


def test_with_all_keys_stored_it_is_the_dense_kl() -> None:
    teacher, student = causal_rows(6, 2, 9, seed=0)
    value = apc_per_row(*sparse_rows(teacher, 9, quantised=False), student)
    torch.testing.assert_close(value, dense_kl(teacher, student), rtol=1e-9, atol=1e-12)


def test_zero_when_the_student_is_the_teacher() -> None:
    teacher, _ = causal_rows(8, 3, 30, seed=0)
    scores = teacher.float().requires_grad_()
    value = apc_per_row(*sparse_rows(teacher.float(), 6, quantised=False), scores.log_softmax(-1))
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    assert value.abs().max() < 1e-5
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("m", [1, 4, 7])
def test_gradient(m: int) -> None:
    teacher, student = causal_rows(5, 2, 7, seed=3)
    rows = sparse_rows(teacher, m, quantised=True)
    masked = student == -torch.inf
    assert masked.any()
    scores = torch.randn(student.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(
        lambda x: apc_per_row(*rows, x.masked_fill(masked, -torch.inf).log_softmax(-1)), (scores.requires_grad_(),)
    )


def test_keys_in_the_padding_are_ignored() -> None:
    student = torch.randn(1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    alone = apc_per_row(torch.tensor([[[0.6, 0.3]]]), torch.tensor([[[4, 1]]]), student)
    weights = torch.tensor([[[0.6, 0.3, 0.0, 0.0, 0.0]]])
    for padding in ([4, 1, 4], [0, 0, 0], [5, 3, 2]):  # real keys again, another one, all others
        assert torch.equal(apc_per_row(weights, torch.tensor([[[4, 1, *padding]]]), student), alone)


def test_edge_rows_have_finite_values_and_gradients() -> None:
    s, m = 8, 4
    scores = torch.zeros(7, 1, s)
    scores[1, 0, 0] = 200.0  # the student is certain: the bucket underflows
    scores[2, 0, 1:] = -torch.inf  # the sequence's first row: one key
    scores[3, 0, 2:] = -torch.inf  # two keys, both stored
    scores[5, 0, 3:] = -torch.inf
    scores.requires_grad_()
    weights, keys = torch.zeros(7, 1, m), torch.arange(m).expand(7, 1, m)
    weights[0, 0, 0] = 1.0  # weight exactly 1
    weights[1, 0, 0] = 0.25  # the teacher is not
    weights[2, 0, 0] = 1.0
    weights[3, 0, :2] = torch.tensor([0.5, 0.5 - 2 * STEP])  # below 1 by rounding
    weights[4, 0, :3] = 0.4  # 1.2, stands for above 1 by rounding
    weights[5, 0, :3] = 1 / 3  # rounds up to 1 or more, or not
    value = apc_per_row(weights, keys, scores.log_softmax(-1))  # row 6: nothing stored
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    certain = 0.25 * math.log(0.25) + 0.75 * (math.log(0.75) + 200 - math.log(7))
    assert value.tolist() == pytest.approx([math.log(8), certain, 0, 0, math.log(8 / 3), 0, 0], abs=1e-5)
    assert gradient[scores == -torch.inf].abs().max() == 0


def test_a_stored_key_masked_for_the_student_is_inf_in_its_row_only() -> None:
    scores = torch.zeros(3, 1, 4)
    scores[1, 0, 2:] = -torch.inf
    scores.requires_grad_()
    weights, keys = torch.tensor([[[0.5, 0.2]]] * 3), torch.tensor([[[0, 3]]] * 3)
    value = apc_per_row(weights, keys, scores.log_softmax(-1))
    assert value[1] == torch.inf
    assert torch.isfinite(value[[0, 2]]).all()
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    assert torch.isfinite(gradient[[0, 2]]).all()


def test_sharp_student_keeps_the_buckets_digits_in_float32() -> None:
    scores = torch.zeros(1, 1, 1000)
    scores[0, 0, 0] = 25.0  # all other keys: 999 e^-25 = 1.4e-8, lost in 1 - (stored weight)
    weights, keys = torch.tensor([[[0.9]]]), torch.tensor([[[0]]])
    exact = apc_per_row(weights.double(), keys, scores.double().log_softmax(-1))
    value = apc_per_row(weights, keys, scores.log_softmax(-1))
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5), st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_entropy_equals_the_definition(seed: int, n: int, h: int, s: int) -> None:
    log_probs, _ = causal_rows(n, h, s, seed)
    expected = [
        [-math.fsum(math.exp(lp) * lp for lp in row if lp > -math.inf) for row in rows] for rows in log_probs.tolist()
    ]
    np.testing.assert_allclose(row_entropies(log_probs.exp()).numpy(), expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(row_entropies(log_probs.float().exp()).numpy(), expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**31), st.integers(0, 12), st.integers(1, 6), st.integers(1, 4))
@settings(deadline=None, max_examples=80)
def test_heads_of_lowest_mean_entropy_per_sequence(seed: int, n: int, heads: int, n_sequences: int) -> None:
    rng = np.random.default_rng(seed)
    entropy, sequence = rng.random((n, heads)), rng.integers(0, n_sequences, n)
    h = int(rng.integers(1, heads + 1))
    chosen = most_focused(torch.from_numpy(entropy), torch.from_numpy(sequence), n_sequences, h)
    assert (chosen.dtype, chosen.shape) == (torch.int64, (n_sequences, h))
    for i in range(n_sequences):
        rows = entropy[sequence == i]
        if len(rows):
            assert chosen[i].tolist() == sorted(range(heads), key=lambda j: rows[:, j].mean())[:h]
        else:
            assert chosen[i].tolist() == list(range(h))


def test_entropy_tells_focused_heads_apart_where_the_mean_cannot() -> None:
    sharpness = torch.tensor([1.0, 30.0, 0.1, 5.0])  # of the four heads
    scores = torch.randn(10, 4, 16, generator=torch.Generator().manual_seed(0)) * sharpness[:, None]
    log_probs = scores.log_softmax(-1)
    torch.testing.assert_close(log_probs.exp().mean(dim=-1), torch.full((10, 4), 1 / 16))
    assert most_focused(row_entropies(log_probs.exp()), torch.zeros(10, dtype=torch.long), 1, 4).tolist() == [
        [1, 3, 0, 2]
    ]


def test_equal_heads_keep_their_order() -> None:
    chosen = most_focused(torch.ones(3, 8), torch.tensor([0, 1, 1], dtype=torch.int32), 2, 5)
    assert chosen.tolist() == [[0, 1, 2, 3, 4]] * 2


def qk(n_keys: int, rows: list[int], heads: int, groups: int, seed: int, dtype: torch.dtype = torch.float64):
    """Recorded q and k of one sequence, and the stored rows of another model: two heads, five keys."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, n, n_keys, 8, generator=generator, dtype=dtype) * 2 for n in (heads, groups))
    position = torch.tensor(rows)
    keys = torch.stack([torch.randperm(row + 1, generator=generator)[:5] for row in rows])[:, None].expand(-1, 2, -1)
    weights = torch.rand(len(rows), 2, 5, generator=generator, dtype=dtype) / 5
    return QueryKey(query.requires_grad_(), key.requires_grad_(), 0.4, None), position, weights, keys


def plain_apc(attention: QueryKey, position, weights, keys, heads: list[int] | None) -> torch.Tensor:
    """The whole [H, L, L] array in float64, then the rows, then the heads."""
    query, key = (part[0].double() for part in attention[:2])
    scores = query @ key.repeat_interleave(len(query) // len(key), dim=0).mT * attention.scaling
    if attention.softcap is not None:
        scores = attention.softcap * torch.tanh(scores / attention.softcap)
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    log_probs = scores.masked_fill(later, -torch.inf).log_softmax(-1)[:, position].transpose(0, 1)
    if heads is None:
        entropy = row_entropies(log_probs.detach().exp()).mean(dim=0)
        heads = sorted(range(len(query)), key=lambda h: entropy[h].item())[: weights.shape[1]]
    return apc_per_row(weights.double(), keys, log_probs[:, heads]).sum()


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
@pytest.mark.parametrize("heads", [None, [3, 0]])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_of_a_sequence_equals_the_plain_computation(
    monkeypatch: pytest.MonkeyPatch, chunk: int, heads: list[int] | None, softcap: float | None
) -> None:
    monkeypatch.setitem(CHUNK_WEIGHTS, "cpu", chunk)
    attention, position, *rows = qk(20, [4, 9, 10, 19], heads=4, groups=2, seed=0, dtype=torch.float32)
    attention = attention._replace(softcap=softcap)
    wanted = plain_apc(attention, position, *rows, heads)
    query, key = attention.query_RHLD[0].transpose(0, 1), attention.key_RGLD[0]
    found = apc_of_sequence(attention, key, query[position], position, *rows, (position + 1).tolist(), heads)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(value, attention[:2]) for value in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        assert other.abs().max() > 0.01
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_scores_of_grouped_heads_do_not_copy_the_keys() -> None:
    query, key = torch.randn(8, 1, 64), torch.randn(2, 1000, 64)
    with TensorMemory() as memory:
        scores = attention_scores(query, key, 0.5, None)
    assert memory.largest <= 4 * key.numel()  # the keys themselves
    wanted = 0.5 * query.double() @ key.double().repeat_interleave(4, dim=0).mT
    torch.testing.assert_close(scores.double(), wanted, rtol=1e-5, atol=1e-5)


def test_chunks_cover_all_rows_with_the_keys_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_WEIGHTS, "cpu", 3 * 100)
    n_keys = [*range(1, 40), 70, 71, 100]
    chunks = _chunks(n_keys, 3, "cpu")
    assert [row for rows, _ in chunks for row in range(rows.start, rows.stop)] == list(range(len(n_keys)))
    for rows, keys in chunks:
        assert max(n_keys[rows]) <= keys <= 100
        assert 3 * keys * (rows.stop - rows.start) <= 3 * 100
    assert len(chunks) < 20  # one row of 100 keys at a time would be 42
    assert _chunks([1, 50, 100], 1, "cpu") == [(slice(0, 3), 100)]
