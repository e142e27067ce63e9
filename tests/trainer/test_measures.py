"""What is measured at rows of logits, against the definitions in float64."""

import math

import numpy as np
import pytest
import torch

from schemas.errors import UserError
from support.reference_rows import sparse_rows, target_of, tla
from trainer.losses.teacher_rows import TeacherRows
from trainer.measures import Measures


def rows_of(ids_NK: torch.Tensor, logprobs_NK: torch.Tensor, next_ids: list[int], next_logprobs=None) -> TeacherRows:
    unknown = torch.full((len(next_ids),), torch.nan)
    return TeacherRows(
        ids_NK,
        logprobs_NK,
        torch.zeros(len(next_ids), 1),
        torch.tensor(next_ids),
        unknown if next_logprobs is None else torch.tensor(next_logprobs),
    )


def measure(logits_NV: torch.Tensor, rows: TeacherRows, token_bytes: list[int] | None, cut: int = 1):
    """Of rows that come in two chunks."""
    target = target_of((rows.ids_NK, rows.logprobs_NK, rows.log_partition_NT[:, 0]), logits_NV.shape[1])
    measures = Measures(None if token_bytes is None else torch.tensor(token_bytes))
    for chunk in (slice(0, cut), slice(cut, len(logits_NV))):
        measures.add(logits_NV[chunk].clone(), rows, target, chunk)
    return measures.result()


def by_text(log_p_NV: list[list[float]], next_ids: list[int], token_bytes: list[int]):
    """Of a student that gives these log-probabilities; the teacher says nothing that matters."""
    ids, logprobs, _ = sparse_rows(torch.tensor(log_p_NV, dtype=torch.float64), 1, 1.0)
    return measure(torch.tensor(log_p_NV, dtype=torch.float64), rows_of(ids, logprobs, next_ids), token_bytes)


def test_bits_per_byte_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_NV = 3 * torch.randn(40, 12, generator=generator, dtype=torch.float64)
    next_ids = torch.randint(0, 12, (40,), generator=generator).tolist()
    token_bytes = [0, 3, 1, 2, 7, 1, 1, 4, 2, 5]  # token 0 is special, 10 and 11 are rows of the head without a token
    ids, logprobs, _ = sparse_rows(torch.randn(40, 12, generator=generator, dtype=torch.float64), 4, 1.0)
    found = measure(logits_NV, rows_of(ids, logprobs, next_ids), token_bytes, cut=17)
    z = logits_NV.numpy()
    log_q = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    bits = -log_q[np.arange(40), next_ids] / np.log(2)
    size = sum([*token_bytes, 0, 0][i] for i in next_ids)
    assert {0, 10, 11} <= {*next_ids}
    assert found["bits_per_byte"] == pytest.approx(bits.sum() / size, rel=1e-12)
    assert "bits_per_byte" not in measure(logits_NV, rows_of(ids, logprobs, next_ids), None)
    assert "bits_per_byte" not in measure(logits_NV, rows_of(ids, logprobs, next_ids), [0] * 12)


def test_bits_per_byte_do_not_depend_on_how_the_text_is_cut() -> None:
    """A source of independent bytes, read in single bytes and in pairs; the text ends with a stop token."""
    p, stop, text = {"a": 0.7, "b": 0.3}, 0.25, "abbaab"
    byte_row = [math.log(p["a"] * (1 - stop)), math.log(p["b"] * (1 - stop)), math.log(stop)]
    pairs = [x + y for x in "ab" for y in "ab"]
    keep = (1 - stop) ** 2  # a pair goes on twice; after one byte a text may stop, too
    others = [math.log(p["a"] * (1 - stop) * stop), math.log(p["b"] * (1 - stop) * stop)]
    pair_row = [*(math.log(p[pair[0]] * p[pair[1]] * keep) for pair in pairs), *others, math.log(stop)]
    assert sum(map(math.exp, byte_row)) == pytest.approx(1)
    assert sum(map(math.exp, pair_row)) == pytest.approx(1)
    bytewise = by_text([byte_row] * 7, ["ab".index(c) for c in text] + [2], [1, 1, 0])
    cut = [text[i : i + 2] for i in range(0, 6, 2)]
    pairwise = by_text([pair_row] * 4, [pairs.index(pair) for pair in cut] + [6], [2, 2, 2, 2, 1, 1, 0])
    bits = -sum(math.log2(p[c] * (1 - stop)) for c in text) - math.log2(stop)
    assert bytewise["bits_per_byte"] == pytest.approx(bits / 6, rel=1e-12)
    assert pairwise["bits_per_byte"] == pytest.approx(bits / 6, rel=1e-12)
    assert pairwise["perplexity"] > 2 * bytewise["perplexity"]


def test_the_teacher_is_compared_with_where_it_says_something() -> None:
    generator = torch.Generator().manual_seed(1)
    logits_NV, teacher_NV = 2 * torch.randn(2, 9, 7, generator=generator, dtype=torch.float64)
    teacher_NV[[0, 5]] = logits_NV[[0, 5]]  # the best token is the same
    ids, logprobs, _ = sparse_rows(teacher_NV, 3, 1.0)
    next_ids, known = [1, 2, 3, 4, 5, 6, 0, 1, 2], [0.1, np.nan, 0.4, np.nan, 0.2, 0.6, np.nan, np.nan, 0.5]
    lacking = [2, 3, 7]
    sparse = logprobs.index_fill(0, torch.tensor(lacking), -torch.inf)
    ids[lacking[0], 0] = logits_NV[lacking[0]].argmax()  # would agree, if anything were stored
    next_logprobs = (-torch.tensor(known)).tolist()
    found = measure(logits_NV, rows_of(ids, sparse, next_ids, next_logprobs), [1] * 7, cut=3)
    everywhere = measure(logits_NV, rows_of(ids, logprobs, next_ids, next_logprobs), [1] * 7, cut=3)
    taught = [i for i in range(9) if i not in lacking]
    best = logits_NV.argmax(dim=1)
    wanted = tla(logits_NV[taught], (ids[taught], logprobs[taught], torch.zeros(6)))
    assert found["kl"] == pytest.approx(wanted.mean().item(), rel=1e-12)
    assert found["top1_agreement"] == pytest.approx((best[taught] == ids[taught, 0]).double().mean().item())
    assert found["top1_agreement"] != everywhere["top1_agreement"]
    assert found["teacher_cross_entropy"] == pytest.approx(np.nanmean(known), rel=1e-6)
    assert (found["tokens"], found["tokens_with_teacher"]) == (9, 6)
    assert "tokens_with_teacher" not in everywhere
    for name in ("cross_entropy", "perplexity", "calibration_error", "bits_per_byte"):
        assert found[name] == everywhere[name]
    unknown = measure(logits_NV, rows_of(ids, sparse, next_ids), [1] * 7)
    assert "teacher_cross_entropy" not in unknown
    assert unknown["kl"] == found["kl"]


def test_no_row_with_a_teacher_is_refused() -> None:
    nothing = rows_of(torch.zeros(3, 2, dtype=torch.int32), torch.full((3, 2), -torch.inf), [1, 2, 3])
    with pytest.raises(UserError, match="none of the 3 tokens in the loss mask has a distribution of the teacher"):
        measure(torch.zeros(3, 5), nothing, None)
