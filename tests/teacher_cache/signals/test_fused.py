"""Compiled functions of logits, and the plain ones where nothing can be compiled."""

import os
import subprocess
import sys

import pytest
import torch

from teacher_cache.signals import fused as module
from teacher_cache.signals.draws.capture import draw
from teacher_cache.signals.fused import COMPILE_FROM, fused


def sums(logits_NV: torch.Tensor, factor_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits_NV.sum(dim=1) * factor_N, logits_NV.argmax(dim=1)


def test_large_vocabularies_are_compiled_in_at_least_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    monkeypatch.setattr(
        module, "compiled_form", lambda plain: lambda *given: shapes.append(given[0].shape) or plain(*given)
    )
    for rows, vocabulary in ((2, COMPILE_FROM), (1, COMPILE_FROM), (2, COMPILE_FROM - 1), (0, COMPILE_FROM)):
        logits_NV, factor_N = torch.randn(rows, vocabulary), torch.arange(1.0, rows + 1)
        for found, wanted in zip(fused("sums")(sums)(logits_NV, factor_N), sums(logits_NV, factor_N), strict=True):
            torch.testing.assert_close(found, wanted)
    assert shapes == [(2, COMPILE_FROM)] * 2


def test_a_row_is_drawn_for_alike_whatever_rows_are_beside_it() -> None:
    torch.manual_seed(0)
    logits, places = 3 * torch.randn(3, COMPILE_FROM + 5), torch.rand(3, 1, 6, dtype=torch.float64).sort(dim=2).values
    together = draw(logits, None, places, [1.0])
    for row in range(3):
        alone = draw(logits[row : row + 1], None, places[row : row + 1], [1.0])
        assert torch.equal(together.ids_NTM[row], alone.ids_NTM[0])
        assert torch.equal(together.entropy_NT[row], alone.entropy_NT[0])


@pytest.mark.parametrize("k", [0, 3])
def test_compiled_draws_are_those_of_eager_mode(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    torch.manual_seed(1)
    logits, places = 3 * torch.randn(5, COMPILE_FROM), torch.rand(5, 2, 9, dtype=torch.float64).sort(dim=2).values
    excluded = logits.topk(k).indices if k else None
    found = draw(logits, excluded, places, [1.0, 2.0])
    monkeypatch.setattr(module, "COMPILE_FROM", 1 << 30)
    wanted = draw(logits, excluded, places, [1.0, 2.0])
    assert torch.equal(found.ids_NTM, wanted.ids_NTM), "but for rounding at the edge between two tokens"
    torch.testing.assert_close(found.entropy_NT, wanted.entropy_NT, rtol=1e-5, atol=1e-5)


def test_without_a_compiler_the_plain_function_runs_with_one_warning() -> None:
    script = f"""
import logging, torch
from teacher_cache.signals.logits.log_sums import log_sums
logging.basicConfig(format="%(levelname)s %(message)s")
logits = torch.arange(2.0 * {COMPILE_FROM}).reshape(2, -1) / 1000
for rows in (2, 1, 2):
    given = logits[:rows], logits[:rows, -1], [1.0, 3.0]
    assert all(map(torch.equal, log_sums(*given), log_sums.__wrapped__(*given)))
"""
    environment = os.environ | {"CXX": "/nowhere/c++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    finished = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    warnings = [line for line in finished.stderr.splitlines() if line.startswith("WARNING torch.compile failed")]
    assert len(warnings) == 1
