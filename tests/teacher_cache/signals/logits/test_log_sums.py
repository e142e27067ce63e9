"""Log sums, compiled and eager, against a float64 reference."""

import math
import os
import subprocess
import sys

import pytest
import torch

from teacher_cache.signals.logits import log_sums as module
from teacher_cache.signals.logits.log_sums import COMPILE_FROM, log_sums, plain_log_sums


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


def test_large_vocabularies_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(module, "_compiled", lambda: lambda *arguments: calls.append(1) or plain_log_sums(*arguments))
    for rows, vocabulary in ((2, COMPILE_FROM), (1, COMPILE_FROM), (2, COMPILE_FROM - 1)):
        logits_NV = logits(rows, vocabulary)
        log_sums(logits_NV, logits_NV.amax(dim=1), [1.0])
    assert len(calls) == 1


def test_without_a_compiler_the_plain_function_runs_with_one_warning() -> None:
    script = f"""
import logging, torch
from teacher_cache.signals.logits.log_sums import log_sums, plain_log_sums
logging.basicConfig(format="%(levelname)s %(message)s")
logits = torch.arange(2.0 * {COMPILE_FROM}).reshape(2, -1) / 1000
for _ in range(2):
    found, plain = log_sums(logits, logits[:, -1], [1.0, 3.0]), plain_log_sums(logits, logits[:, -1], [1.0, 3.0])
    assert all(map(torch.equal, found, plain))
"""
    environment = os.environ | {"CXX": "/nowhere/c++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    finished = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    warnings = [line for line in finished.stderr.splitlines() if line.startswith("WARNING torch.compile failed")]
    assert len(warnings) == 1
