"""vLLM on two ranks gives what transformers gives: logits, hidden states, and attention heads of both ranks.

vLLM runs in a subprocess. One rank is tested in ``test_engines``.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.cache_config import CacheConfig, FinalCapture, HiddenCapture, Quantised
from schemas.errors import UserError
from schemas.load import validate
from support.models import VOCAB_SIZE, write_random_teacher
from teacher_cache.engines import open_engine
from teacher_cache.engines.vllm import VllmEngine
from teacher_cache.records import Captured, Request
from teacher_cache.signals.hidden.capture import to_floats

Both = tuple[list[Captured], list[Captured]]
HIDDEN, FINAL = {"layers": [1, 2], "dtype": "float16"}, {"dtype": "float16"}


STRIDES = ((0, 2), (1, 3), (0, 3), (2, 2))  # first position and step of each signal


def tree(teacher: Path, engine: dict[str, Any]) -> dict[str, Any]:
    return {
        "teacher": {"path": str(teacher), "dtype": "float32"},
        "engine": {"max_batch_tokens": 256, **engine},
        "corpus": {"sources": [{"path": "unused", "format": "text"}], "max_tokens": 100},
        "capture": {
            "logits": {"k": 12},
            "hidden": HIDDEN,
            "attention": {"heads": 3, "keys": 8},
            "draws": {"n": 5},
            "final": FINAL,
        },
        "output": {"path": "unused"},
    }


def requests() -> list[Request]:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, VOCAB_SIZE, n).astype(np.uint32) for n in (100, 3, 41, 64)]
    rows = [[np.arange(first, len(i), step, dtype=np.int32) for first, step in STRIDES] for i in ids]
    side = ("hidden", "attention", "final")
    return [
        Request(i, logits, dict(zip(side, others, strict=True)), seed)
        for seed, (i, (logits, *others)) in enumerate(zip(ids, rows, strict=True))
    ]


def score(config: dict[str, Any]) -> list[Captured]:
    """In two calls."""
    with open_engine(validate(CacheConfig, config, "test")) as engine:
        if isinstance(engine, VllmEngine):
            _check_errors_of_workers(engine)
        calls = [requests()[:1], requests()[1:]]
        return [captured for call in engine.score_calls(calls) for captured in call]


def _check_errors_of_workers(engine: VllmEngine) -> None:
    """A worker in a process of its own gives its errors word for word."""
    engine._call_ranks("begin_probe")
    with pytest.raises(
        UserError, match=r"^capture\.hidden: vLLM's layer 1 \(\w+\): its output is not what the next norm"
    ):
        engine._call_ranks("end_probe")


def score_on_two_ranks(config: dict[str, Any]) -> list[Captured]:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
    return score(config)


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Captured by transformers, and by vLLM on two ranks."""
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2}
    teacher = write_random_teacher(tmp_path_factory.mktemp("teacher"), **shape)
    two_ranks = {"kind": "vllm", "tensor_parallel": 2}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        two = pool.submit(score_on_two_ranks, tree(teacher, two_ranks))
        one = score(tree(teacher, {"kind": "transformers", "device": "cpu"}))
        return one, two.result(timeout=300)


def test_logits(captured: Both) -> None:
    for one, two in zip(*captured, strict=True):
        assert (one.logits.ids == two.logits.ids).mean() > 0.99, "but for ties"
        for name in ("num_tokens", "positions", "counts"):
            np.testing.assert_array_equal(getattr(one.logits, name), getattr(two.logits, name), err_msg=name)
        for name in ("logprobs", "next_logprob", "log_partition"):
            wanted, found = getattr(one.logits, name), getattr(two.logits, name)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4, err_msg=name)
        assert len(one.logits.positions) == -(-one.logits.num_tokens // 2), "every second row"


@pytest.mark.parametrize(
    ("signal", "capture", "layers"),
    [("hidden", HiddenCapture.model_validate(HIDDEN), 2), ("final", FinalCapture.model_validate(FINAL), 1)],
)
def test_hidden_states(captured: Both, signal: str, capture: Quantised, layers: int) -> None:
    for one, two in zip(*captured, strict=True):
        wanted, found = (to_floats(rank.side[signal], capture) for rank in (one, two))
        assert wanted.shape[1:] == (layers, 64)
        assert ((found - wanted).norm(dim=2) / wanted.norm(dim=2)).max() < 2e-3


def test_draws(captured: Both) -> None:
    for one, two in zip(*captured, strict=True):
        wanted, found = one.side["draws"], two.side["draws"]
        assert len(wanted.ids) == len(found.ids) > 0
        assert (wanted.ids == found.ids).mean() > 0.99, "but for draws at the edge between two tokens"
        assert np.abs(wanted.entropy - found.entropy).max() < 1e-4


def test_attention_rows_of_heads_on_both_ranks(captured: Both) -> None:
    ranks_of_heads = set()
    for one, two in zip(*captured, strict=True):
        wanted, found = one.side["attention"], two.side["attention"]
        assert wanted.heads.tolist() == found.heads.tolist()
        assert np.abs(wanted.weights - found.weights).max() < 1e-4
        assert (wanted.keys == found.keys).mean() > 0.99, "but for ties"
        ranks_of_heads |= {head // 2 for head in found.heads.tolist()}
    assert ranks_of_heads == {0, 1}
