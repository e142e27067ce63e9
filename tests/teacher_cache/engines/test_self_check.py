"""Engines that compute other values than the teacher are refused before anything is stored."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.engines import BROKEN, config_of
from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import validate
from support.families import write_family
from support.models import write_random_teacher, write_text_corpus
from support.workspace import cache_tree
from teacher_cache import job
from teacher_cache.engines import load_engine, open_engine, self_check
from teacher_cache.engines.transformers import TransformersEngine

SIGNALS = ["logits", "final", "hidden", "attention"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("Llama", tmp_path_factory.mktemp("llama"))


def config(folder: Path, dtype: str = "float32", **engine: Any) -> CacheConfig:
    return config_of(folder, "transformers", SIGNALS, dtype, **engine)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["Llama", "Gemma-2", "Qwen3-MoE", "Qwen3.5"])
def test_a_correct_engine_passes(tmp_path: Path, family: str, dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_family(family, tmp_path)
    with caplog.at_level(logging.INFO), open_engine(config(folder, dtype, self_check="on")):
        pass
    assert "agrees with transformers: logits" in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_engine_is_refused_in_either_precision(tmp_path: Path, what: str, dtype: str) -> None:
    family, breaks = BROKEN[what]
    settings = config(write_family(family, tmp_path), dtype)
    wanted = self_check.expected(settings)
    assert wanted is not None
    with load_engine(settings) as engine:
        assert isinstance(engine, TransformersEngine)
        self_check.self_check(engine, settings, wanted)
        breaks(engine._model)
        with pytest.raises(UserError, match=r"engine\.self_check: the transformers engine .*: logits off by"):
            self_check.self_check(engine, settings, wanted)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        ("hidden", r"hidden of layer 2 off by .* \(relative\), .*engine\.kind: vllm, or leave capture\.hidden out"),
        ("final", r"final off by .* or leave capture\.final out"),
        ("attention", r"attention off by .* in a weight, .*or leave capture\.attention out"),
    ],
)
def test_the_wrong_signal_and_layer_are_named(llama: Path, signal: str, message: str) -> None:
    settings = config(llama)
    wanted = self_check.expected(settings)
    assert wanted is not None
    spoiled = [_spoiled(computed, signal) for computed in wanted.exact]
    with load_engine(settings) as engine, pytest.raises(UserError, match=message):
        self_check.self_check(engine, settings, wanted._replace(exact=spoiled))


def _spoiled(computed: Any, signal: str) -> Any:
    changes = {
        "hidden": {"hidden_SD": computed.hidden_SD | {2: computed.hidden_SD[2] * 1.02}},
        "final": {"final_SD": computed.final_SD.roll(1, dims=0)},
        "attention": {"weights_HSS": computed.weights_HSS.flip(0)},
    }[signal]
    return type(computed)(**(vars(computed) | changes))


def test_run_writes_nothing_when_the_check_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = TransformersEngine.__init__

    def load_scaled(self: TransformersEngine, settings: CacheConfig) -> None:
        load(self, settings)
        self._model.lm_head.weight.data.mul_(1.05)

    monkeypatch.setattr(TransformersEngine, "__init__", load_scaled)
    teacher = write_random_teacher(tmp_path / "teacher")
    tree = cache_tree(teacher, write_text_corpus(tmp_path / "corpus", documents=3), tmp_path / "cache")
    with pytest.raises(UserError, match=r"engine\.self_check: .* logits off by"):
        job.run(validate(CacheConfig, tree, "test"))
    assert not list((tmp_path / "cache").glob("*.logits.tar"))
    tree["engine"]["self_check"] = "off"
    assert job.run(validate(CacheConfig, tree, "test")).complete


def test_skipped_checks_are_logged(
    llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert self_check.expected(config(llama, self_check="off")) is None
    with caplog.at_level(logging.INFO):
        monkeypatch.setattr(self_check, "MAX_PARAMETERS", 1000)
        assert self_check.expected(config(llama)) is None
        assert "not compared with transformers: the teacher has 0.0 B parameters, more than 2 B" in caplog.text
        assert self_check.expected(config(llama, self_check="on")) is not None, "on overrides the limit"
        monkeypatch.setattr(self_check, "available_memory_bytes", lambda: 1000)
        with pytest.raises(UserError, match=r"engine\.self_check: on: the teacher takes 0\.0 GB as float32, and"):
            self_check.expected(config(llama, self_check="on"))


def test_sequences_exceed_a_short_window_and_have_no_special_tokens(tmp_path: Path) -> None:
    folder = write_family("Gemma-3 (multimodal)", tmp_path)
    requests = self_check._requests(config(folder))
    assert [len(request.input_ids) for request in requests] == [48, 24]
    special = self_check._special(self_check.load_model_config(config(folder).teacher))
    assert not np.isin(requests[0].input_ids, special).any()
    assert len(np.unique(requests[1].input_ids)) <= 5
    torch.testing.assert_close(requests[0].input_ids, self_check._requests(config(folder))[0].input_ids, msg="repeats")


def test_a_teacher_that_transformers_cannot_load_is_logged(
    llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_class(_config: Any) -> Any:
        raise ValueError("Unrecognized configuration class\nand a screen of others")

    monkeypatch.setattr(self_check, "model_class", no_class)
    with caplog.at_level(logging.INFO):
        assert self_check.expected(config(llama)) is None
    assert caplog.messages[-1] == (
        "self-check: the engine was not compared with transformers: Unrecognized configuration class"
    )
    with pytest.raises(UserError, match=r"engine\.self_check: on: Unrecognized configuration class; set it to auto"):
        self_check.expected(config(llama, self_check="on"))
