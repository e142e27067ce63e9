"""Log sums, compiled and eager, against a float64 reference."""

import math

import pytest
import torch

from teacher_cache.signals.fused import COMPILE_FROM
from teacher_cache.signals.logits.log_sums import log_sums


def logits(rows: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (4 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows))).to(dtype)


@pytest.mark.parametrize("vocabulary", [7, COMPILE_FROM - 1, COMPILE_FROM, COMPILE_FROM + 1])
@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_equal_the_float64_reference(rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    logits_NV, temperatures = logits(rows, vocabulary, dtype), [3.0, 1.0, 0.5]
    max_N = logits_NV.amax(dim=1)
    found_NT, entropy_N = log_sums(logits_NV, max_N, temperatures)
    shifted_NV = logits_NV.double() - max_N.double()[:, None]
    wanted_NT = torch.stack([torch.logsumexp(shifted_NV / t, dim=1) for t in temperatures], dim=1)
    assert found_NT.dtype == torch.float32
    torch.testing.assert_close(found_NT.double(), wanted_NT, rtol=1e-5, atol=1e-5)
    wanted_N = torch.distributions.Categorical(logits=logits_NV.double()).entropy()
    assert entropy_N.dtype == torch.float32
    torch.testing.assert_close(entropy_N.double(), wanted_N, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4])  # the plain function, and the compiled one
def test_the_entropy_of_extreme_rows_is_exact(rows: int) -> None:
    """Rows: nearly uniform, almost certain, and with masked tokens."""
    vocabulary = 48_640
    uniform_V, sure_V, masked_V = torch.rand(vocabulary) * 1e-3, torch.zeros(vocabulary), torch.zeros(vocabulary)
    sure_V[7], masked_V[2:] = 1e4, -torch.inf
    for row_V, wanted in ((uniform_V, math.log(vocabulary)), (sure_V, 0.0), (masked_V, math.log(2))):
        logits_NV = row_V.expand(rows, -1)
        _, entropy_N = log_sums(logits_NV, logits_NV.amax(dim=1), [1.0])
        torch.testing.assert_close(entropy_N, torch.full((rows,), wanted), rtol=1e-5, atol=1e-5)
