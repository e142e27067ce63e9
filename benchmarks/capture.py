"""Cost of capture, relative to the same engine without it.

One process and one vLLM engine score the same sequences, one call per unit. Every variant is warmed up once (vLLM
compiles then), and reported as the median of repetitions with rotated order:

- plain: prefill with the capture hook removed; one token is sampled per sequence, as vLLM requires.
- captured: the job's own path from two planned units to committed shards: score, reduce, encode, tar, sync, rename,
  commit.
- prompt_logprobs: vLLM's own feature with the same k, in its faster (flat) form, with every token's text as by default.
  It does less: no log-partitions, nothing written.
- … without texts: the same with ``detokenize=False``.
- … as dicts: with texts, in vLLM's default form.
- transformers: its forward pass, log-softmax and ``torch.topk``; nothing written.
- floor: plain, plus only the output head's matrix product for every row. The gap between floor and captured is this
  project's overhead.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import FOLDER, K, as_config, captured, digest, sequences_of, settings
from benchmarks.support.results import Row, at_least, at_most, exit_status, write_results
from schemas.cache_config import CacheConfig
from teacher_cache.engines import open_engine
from teacher_cache.engines.chunk_rows import CPU_ROWS
from teacher_cache.job import Summary
from teacher_cache.shards.reader import CacheReader

REPETITIONS = 3
SEQUENCES, TOKENS = 8, 512
UNITS = 2
MIN_OF_FLOOR, MIN_OF_PROMPT_LOGPROBS, MAX_OVERHEAD, MAX_IDLE = 0.92, 2.2, 0.2, 2


def main() -> int:
    """Run the benchmark; returns the exit status."""
    tree = settings(FOLDER / "capture", modules=SEQUENCES, characters=7_000, max_tokens=TOKENS)
    tree["corpus"]["over_long"] = "truncate"  # one sequence per module
    tree["output"]["tokens_per_shard"] = SEQUENCES * TOKENS // UNITS
    config = as_config(tree)
    engine = open_engine_with_tokenizer(config)
    captured(engine, config)  # writes the cache that the sequences are read from
    sequences = sequences_of(CacheReader(config.output.path), limit=SEQUENCES)
    tokens = sum(map(len, sequences))
    idle: list[float] = []
    model = AutoModelForCausalLM.from_pretrained(make_teacher(), dtype=torch.float32).eval()
    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: plain(engine, sequences),
        "captured": lambda: noted(captured(engine, config), idle),
        "prompt_logprobs": lambda: prompt_logprobs(engine, sequences, texts=True),
        "without_texts": lambda: prompt_logprobs(engine, sequences, texts=False),
        "dicts": lambda: prompt_logprobs(engine, sequences, texts=True, flat=False),
        "transformers": lambda: transformers_top_k(model, sequences),
        "floor": lambda: floor(engine, sequences, CPU_ROWS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for repetition in range(REPETITIONS):
        names = list(ways)
        for name in names[repetition:] + names[:repetition]:
            seconds[name].append(ways[name]())
        took = ", ".join(f"{name} {values[-1]:.1f} s" for name, values in seconds.items())
        print(f"repetition {repetition + 1} of {REPETITIONS}: {took}", flush=True)
    engine.close()

    median = {name: statistics.median(values) for name, values in seconds.items()}
    speed = {name: tokens / value for name, value in median.items()}
    theirs = max(speed["prompt_logprobs"], speed["without_texts"])
    overhead = {name: value - median["plain"] for name, value in median.items()}
    overhead_of_theirs = min(overhead["prompt_logprobs"], overhead["without_texts"])
    rows = [
        Row("plain prefill", speed["plain"], "tok/s"),
        Row("captured, encoded, written, committed", speed["captured"], "tok/s"),
        Row(f"prompt_logprobs = {K}, flat", speed["prompt_logprobs"], "tok/s"),
        Row("… without texts", speed["without_texts"], "tok/s"),
        Row("… as dicts", speed["dicts"], "tok/s"),
        Row("transformers: forward pass, log-softmax, top k", speed["transformers"], "tok/s"),
        Row("floor: prefill and the head's matrix product", speed["floor"], "tok/s"),
        at_least("captured ÷ floor", speed["captured"] / speed["floor"], "×", MIN_OF_FLOOR),
        Row("captured ÷ plain prefill", speed["captured"] / speed["plain"], "×"),
        Row("floor ÷ plain prefill", speed["floor"] / speed["plain"], "×"),
        at_least("captured ÷ the faster prompt_logprobs", speed["captured"] / theirs, "×", MIN_OF_PROMPT_LOGPROBS),
        Row("… which the floor is at most", speed["floor"] / theirs, "×"),
        at_most("time above plain prefill ÷ theirs", overhead["captured"] / overhead_of_theirs, "×", MAX_OVERHEAD),
        at_most("engine idle during the captured runs, largest", 100 * max(idle), "%", MAX_IDLE),
    ]
    raw = {
        "seconds": seconds,
        "engine_idle_share": idle,
        "tokens": tokens,
        "sequences": digest(sequences),
        "k": K,
        "dtype": config.teacher.dtype,
        "max_batch_tokens": config.engine.max_batch_tokens,
        "head_chunk_rows": CPU_ROWS,
    }
    what = f"SmolLM2-135M in {config.teacher.dtype}, {len(sequences)} × {TOKENS} tokens"
    title = f"Capture: {what}, medians of {REPETITIONS} repetitions"
    write_results("capture", title, rows, raw)
    return exit_status(rows)


def noted(summary: Summary, idle: list[float]) -> float:
    """The seconds of a captured run; appends its share of engine idle time to ``idle``."""
    idle.append(summary.engine_idle_share or 0.0)
    return summary.seconds


def open_engine_with_tokenizer(config: CacheConfig) -> Any:
    """The job's engine with vLLM's tokenizer enabled, which prompt_logprobs needs for its texts."""
    import vllm

    load = vllm.LLM
    with mock.patch.object(vllm, "LLM", lambda **options: load(**{**options, "skip_tokenizer_init": False})):
        return open_engine(config)


def plain(engine: Any, sequences: list[np.ndarray]) -> float:
    """Seconds of prefill without capture."""
    with hooks_replaced(engine, None):
        start = time.perf_counter()
        generate(engine, sequences)
        return time.perf_counter() - start


def prompt_logprobs(engine: Any, sequences: list[np.ndarray], texts: bool, flat: bool = True) -> float:
    """Seconds of prefill with vLLM's prompt_logprobs, with or without every token's text."""
    engine._llm.llm_engine.model_config.max_logprobs = K  # the default limit is 20
    with hooks_replaced(engine, None):
        start = time.perf_counter()
        outputs = generate(engine, sequences, prompt_logprobs=K, flat_logprobs=flat, detokenize=texts)
        seconds = time.perf_counter() - start
    found = outputs[0].prompt_logprobs
    entries = len(found.logprobs) if flat else sum(len(row or ()) for row in found)
    if entries < K * (len(sequences[0]) - 1):
        raise RuntimeError("vLLM returned fewer log-probabilities than requested")
    return seconds


def floor(engine: Any, sequences: list[np.ndarray], chunk_rows: int) -> float:
    """Seconds of prefill plus the output head's matrix product for every row."""

    def head_only(model: Any, _args: Any, hidden_ND: Any) -> None:
        for hidden in hidden_ND.split(chunk_rows):
            model.compute_logits(hidden)

    with hooks_replaced(engine, head_only):
        start = time.perf_counter()
        generate(engine, sequences)
        return time.perf_counter() - start


def transformers_top_k(model: Any, sequences: list[np.ndarray]) -> float:
    """Seconds for the top k log-probabilities of every row, with the same batching as the other variants."""
    start = time.perf_counter()
    with torch.inference_mode():
        for call in calls(sequences):
            model(torch.from_numpy(np.stack(call)), use_cache=False).logits.log_softmax(dim=-1).topk(K)
    return time.perf_counter() - start


def generate(engine: Any, sequences: list[np.ndarray], **sampling: Any) -> Any:
    """vLLM's ``generate`` with one sampled token per sequence."""
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=1, temperature=0.0, **{"detokenize": False, **sampling})
    outputs = []
    for call in calls(sequences):
        prompts = [{"prompt_token_ids": ids.tolist()} for ids in call]
        outputs += engine._llm.generate(prompts, parameters, use_tqdm=False)
    return outputs


def calls(sequences: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """The sequences of each call: one unit's."""
    per_call = SEQUENCES // UNITS
    return (sequences[first : first + per_call] for first in range(0, len(sequences), per_call))


@contextmanager
def hooks_replaced(engine: Any, hook: Any) -> Iterator[None]:
    """Replace the model's capture hook by ``hook`` (None: by nothing) for the duration."""
    (model,) = engine._llm.collective_rpc(lambda worker: worker.model_runner.get_model())
    hooks, with_kwargs = dict(model._forward_hooks), dict(model._forward_hooks_with_kwargs)
    model._forward_hooks.clear()
    model._forward_hooks_with_kwargs.clear()
    handle = model.register_forward_hook(hook) if hook is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        model._forward_hooks.update(hooks)
        model._forward_hooks_with_kwargs.update(with_kwargs)


if __name__ == "__main__":
    sys.exit(main())
