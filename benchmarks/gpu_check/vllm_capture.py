"""Part 7: capture inside vLLM against vLLM alone, with random weights at real shapes."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.gpu_check.capture_hooks import BARS, CAPTURES, request_of
from benchmarks.gpu_check.device_size import DecoderShape, DeviceSize
from benchmarks.gpu_check.random_models import qwen3_config
from benchmarks.gpu_check.reporting import WORK, Report
from benchmarks.support.common import as_config, in_own_process
from benchmarks.support.results import Row, at_least

K = 64
STEPS = 4  # of ``step_tokens`` each, in one call


def measure(size: DeviceSize, report: Report) -> None:
    """Each shape of decoder, with each set of signals, each in a process with an engine of its own."""
    if find_spec("vllm") is None:
        report.skip("vLLM", "is not installed")
        return
    for shape in size.decoders:
        folder = WORK / f"vllm-{shape.name.replace(' ', '')}"
        _write_config(folder, shape)
        for name, capture in CAPTURES.items():
            seconds = in_own_process(_measure, folder, capture, size, shape.vocabulary)
            ratio = seconds["plain"] / seconds["captured"]
            what = f"vLLM, {shape.name}: captured ÷ plain prefill, {name}"
            bar = BARS.get(name) if shape.barred else None
            report.add(Row(what, ratio, "×") if bar is None else at_least(what, ratio, "×", bar))
            if name == "logits":
                ratio = seconds["prompt_logprobs"] / seconds["captured"]
                report.add(Row(f"vLLM, {shape.name}: captured ÷ prompt_logprobs = {K}, flat, no texts", ratio, "×"))


def _write_config(folder: Path, shape: DecoderShape) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    qwen3_config(shape, architectures=["Qwen3ForCausalLM"]).save_pretrained(folder)


def _measure(folder: Path, capture: dict[str, Any], size: DeviceSize, vocabulary: int) -> dict[str, float]:
    """Median seconds of one call: with vLLM alone, with its own log-probabilities, and captured."""
    import vllm
    from vllm import SamplingParams

    from benchmarks.gpu_check.device_clock import cost_of
    from teacher_cache.engines.vllm import VllmEngine

    tree = {
        "teacher": {"path": str(folder), "dtype": size.decoder_dtype},
        "engine": {"kind": "vllm", "max_batch_tokens": size.step_tokens, "head_chunk_rows": 2_048},
        "corpus": {"sources": [{"path": "unused", "format": "text"}], "max_tokens": size.sequence_tokens},
        "capture": capture,
        "output": {"path": "unused"},
    }
    config = as_config(tree)
    shape = (STEPS * size.step_tokens // size.sequence_tokens, size.sequence_tokens)
    ids = np.random.default_rng(0).integers(0, vocabulary, shape)
    prompts: list[Any] = [{"prompt_token_ids": row.tolist()} for row in ids]
    seconds: dict[str, float] = {}

    def cost(call: Callable[[], object]) -> float:
        return cost_of(call, size.device, size.repetitions).seconds

    class MeasuredBefore(VllmEngine):
        """Measures vLLM before a hook is installed."""

        def _start_capture(self, config: Any) -> None:
            generate = partial(self._llm.generate, prompts, use_tqdm=False)
            plain = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
            seconds["plain"] = cost(lambda: generate(plain))
            self._llm.llm_engine.model_config.max_logprobs = K  # the default limit is 20
            own = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, prompt_logprobs=K, flat_logprobs=True)
            seconds["prompt_logprobs"] = cost(lambda: generate(own))
            super()._start_capture(config)

    with mock.patch.object(vllm, "LLM", partial(vllm.LLM, load_format="dummy")):
        engine = MeasuredBefore(config)
    requests = [request_of(row, number, config.capture) for number, row in enumerate(ids)]
    seconds["captured"] = cost(lambda: engine.score(requests))
    engine.close()
    return seconds
