"""The loss on pieces of text against autograd in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import CaptureConfig
from schemas.train_config import AlmConfig, LossConfig
from support.reference_rows import WithGradient, sparse_rows
from teacher_cache.output_head import OutputHead
from trainer.losses import head_chunks, lean
from trainer.losses.alm import MOST_TOKENS, Alm, alm_, pieces_of
from trainer.losses.cross_entropy import cross_entropy_
from trainer.losses.objective import Objective
from trainer.losses.teacher_rows import TeacherRows, teacher_rows

V = 13
TOKENS = [0, 1, 0, 0, 3, 0, 2, 1, 0, 0, 0, 4, 0]  # rows of the piece that ends with each
N = len(TOKENS)


def rows_of(tokens: list[int], seed: int = 0, vocabulary: int = V) -> TeacherRows:
    generator = torch.Generator().manual_seed(seed)
    n = len(tokens)
    ids, logprobs, partition = sparse_rows(torch.randn(n, vocabulary, generator=generator, dtype=torch.float64), 4, 1.0)
    following = torch.randint(0, vocabulary, (n,), generator=generator)
    pieces = torch.tensor(tokens, dtype=torch.int32)
    logprob = -5 * torch.rand(n, generator=generator, dtype=torch.float64) * pieces
    none = torch.full((n,), torch.nan, dtype=torch.float64)
    return TeacherRows(
        ids, logprobs, partition[:, None], following, none, piece_tokens_N=pieces, piece_logprob_N=logprob
    )


def by_definition(logits_NV: torch.Tensor, rows: TeacherRows, temperature: float) -> torch.Tensor:
    """Piece by piece, [N]; differentiable."""
    assert rows.piece_tokens_N is not None
    assert rows.piece_logprob_N is not None
    log_q_N = logits_NV.log_softmax(dim=1).gather(1, rows.next_ids_N[:, None]).squeeze(1)
    losses = logits_NV.new_zeros(len(logits_NV))
    for last, tokens in enumerate(rows.piece_tokens_N.tolist()):
        if tokens > 0:
            p = (rows.piece_logprob_N[last] / temperature).exp()
            q = (log_q_N[last - tokens + 1 : last + 1].sum() / temperature).exp()
            losses[last] = temperature * (p * (p / q).log() + torch.special.xlogy(1 - p, (1 - p) / (1 - q)))
    return losses


def random_logits(scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(N, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 7.0, 100.0, 10_000.0])
def test_values_and_gradients_are_those_of_the_definition(temperature: float) -> None:
    rows, leaf = rows_of(TOKENS), random_logits().requires_grad_()
    wanted = by_definition(leaf, rows, temperature)
    found, gradient = alm_(leaf.detach().clone(), rows.next_ids_N, pieces_of(rows), temperature)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), leaf)[0], rtol=1e-8, atol=1e-10)
    assert (found > 0).tolist() == [tokens > 0 for tokens in TOKENS]
    within = [False, True, True, True, True, True, True, True, True, True, True, True, False]
    assert (gradient.abs().sum(dim=1) > 0).tolist() == within


def test_gradcheck() -> None:
    rows, leaf = rows_of(TOKENS), random_logits().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: WithGradient.apply(z, lambda own: alm_(own, rows.next_ids_N, pieces_of(rows), 100.0)).sum(), (leaf,)
    )


def test_where_both_agree_there_is_nothing_to_learn() -> None:
    rows, logits = rows_of(TOKENS), random_logits()
    log_q_N = logits.log_softmax(dim=1).gather(1, rows.next_ids_N[:, None]).squeeze(1)
    agreed = torch.tensor([log_q_N[n - tokens + 1 : n + 1].sum() for n, tokens in enumerate(TOKENS)])
    own = TeacherRows(**{**vars(rows), "piece_logprob_N": agreed})
    loss, gradient = alm_(logits, rows.next_ids_N, pieces_of(own), 100.0)
    assert loss.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [1.0, 100.0])
@pytest.mark.parametrize("logprob", [0.0, 1e-3], ids=["0", "above 0 by rounding"])
def test_a_piece_of_which_the_teacher_is_certain_costs_its_cross_entropy(temperature: float, logprob: float) -> None:
    rows, logits = rows_of(TOKENS), random_logits()
    certain = TeacherRows(**{**vars(rows), "piece_logprob_N": torch.full((N,), logprob)})
    loss, gradient = alm_(logits.clone(), rows.next_ids_N, pieces_of(certain), temperature)
    hard, by_hard = cross_entropy_(logits, rows.next_ids_N)
    torch.testing.assert_close(loss.sum(), hard[1:-1].sum())
    torch.testing.assert_close(gradient[1:-1], by_hard[1:-1])


@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0, 1000.0])
def test_float32_has_the_digits_of_float64(scale: float) -> None:
    """Students that are certain, rightly and wrongly: 1 - q has no correct digit in float32."""
    rows, logits = rows_of(TOKENS), random_logits(scale)
    logits[:7].scatter_(1, rows.next_ids_N[:7, None], 2 * scale)
    logits = logits.float()
    loss, gradient = alm_(logits.clone(), rows.next_ids_N, pieces_of(rows), 100.0)
    exact, by_exact = alm_(logits.double(), rows.next_ids_N, pieces_of(rows), 100.0)
    assert loss.dtype == gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    torch.testing.assert_close(loss.double(), exact, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(gradient.double(), by_exact, rtol=2e-5, atol=2e-6)
    assert rows.piece_logprob_N is not None
    assert gradient.abs().max() <= max(1, -rows.piece_logprob_N.min())


def test_a_piece_that_is_too_long_does_not_count() -> None:
    tokens = [0] * (2 * MOST_TOKENS + 2)
    tokens[MOST_TOKENS], tokens[2 * MOST_TOKENS] = MOST_TOKENS + 1, MOST_TOKENS
    last_N = pieces_of(rows_of(tokens)).last_N
    assert (last_N >= 0).nonzero().squeeze(1).tolist() == list(range(MOST_TOKENS + 1, 2 * MOST_TOKENS + 1))


def test_with_the_same_tokenizer_each_token_is_a_piece() -> None:
    rows = rows_of([1] * N)
    same = TeacherRows(**{**vars(rows), "piece_tokens_N": None, "next_logprob_N": rows.piece_logprob_N.clone()})
    same.next_logprob_N[2] = torch.nan
    assert pieces_of(same).last_N.tolist() == [0, 1, -1, *range(3, N)]
    logits = random_logits()
    found, _ = alm_(logits.clone(), rows.next_ids_N, pieces_of(same), 100.0)
    wanted = by_definition(logits, rows, 100.0)
    wanted[2] = 0
    torch.testing.assert_close(found, wanted)


LOSSES = {"alm": {"temperature": 30.0, "weight": {"start": 0.5, "end": 0.5}}}
CAPTURE = CaptureConfig.model_validate({"logits": {"k": 4, "temperatures": [1.0]}})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), max_size=8), st.integers(1, 40))
def test_chunks_change_nothing(drawn: list[tuple[int, int]], size: int) -> None:
    """Beside TLA, with chunks of any size, against the definition; no chunk cuts a piece."""
    tokens = [each for gap, length in drawn for each in [0] * (gap + length - 1) + [length]]
    rows, generator = rows_of(tokens), torch.Generator().manual_seed(2)
    hidden = torch.randn(len(tokens), 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    objective, chunks = Objective(LossConfig.model_validate(LOSSES), CAPTURE), []

    def spied(head: OutputHead, n_rows: int, joined_N: torch.Tensor) -> list[slice]:
        chunks.extend(head_chunks.chunk_rows(head, n_rows, joined_N))
        return chunks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_chunks, "CPU_BYTES", size * 4 * V)
        patch.setattr(lean, "chunk_rows", spied)
        loss, terms = objective.head_terms(hidden, OutputHead(weight), rows, progress=0.5)
    for last, length in enumerate(tokens):
        assert length == 0 or any(chunk.start <= last - length + 1 and last < chunk.stop for chunk in chunks)
    totals = {term.name: term.total for term in terms}
    wanted = by_definition(hidden @ weight.T, rows, 30.0).sum()
    torch.testing.assert_close(totals["alm"], wanted.detach(), rtol=1e-10, atol=1e-10)
    alone = Objective(LossConfig.model_validate({}), CAPTURE).head_terms(hidden, OutputHead(weight), rows, 0.5)[0]
    torch.testing.assert_close(loss, alone + 0.5 * wanted, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(loss, (hidden, weight))
    for found, right in zip(ours, torch.autograd.grad(alone + 0.5 * wanted, (hidden, weight)), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-9)


def test_a_piece_counts_if_all_of_its_rows_do() -> None:
    mask = [[1, 1, 1, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 0, 1, 1, 0]]
    tokens = [[0, 2, 2, 0, 2, 0, 0, 3], [1, 1, 3, 1, 0, 1, 2, 9], [0, 0, 3, 2, 0, 3, 2, 0]]
    batch = {
        "loss_mask": torch.tensor(mask, dtype=torch.bool),
        "piece_tokens": torch.tensor(tokens, dtype=torch.int32),
        "piece_logprob": -torch.arange(24.0).view(3, 8),
        "input_ids": torch.zeros(3, 8, dtype=torch.long),
    } | {name: torch.zeros(3, 8, 1) for name in ("ids", "logprobs", "log_partition", "next_logprob")}
    rows = teacher_rows(batch)
    assert rows.piece_tokens_N is not None
    assert rows.piece_logprob_N is not None
    # the mask's rows in order; lost are the first of row 0 and of row 1 after a gap, and those that begin too early
    assert rows.piece_tokens_N.tolist() == [0, 2, 2, 0, 0, 0, 3, 1, 0, 1, 0, 0, 0, 3, 2, 0, 2]
    assert rows.piece_logprob_N.tolist() == [
        -float(8 * r + c) for r, row in enumerate(mask) for c in range(8) if row[c]
    ]
    assert rows.piece_tokens_N.dtype == torch.int32


def test_settings_and_title() -> None:
    loss = Alm(AlmConfig(), CAPTURE)
    assert loss.title() == "ALM, likelihoods of pieces of text at temperature 100.0"
    assert loss.signals == {"logits"}
    assert "alm" not in Objective(LossConfig(), CAPTURE).losses
