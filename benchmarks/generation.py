"""Cost of a generation, relative to vLLM alone, and of capturing what it wrote.

One process, one vLLM engine for all ways of generating, HumanEval's problems as prompts. Every way is warmed up once;
order alternates; speeds are medians of repetitions, ratios the medians of those within a repetition. Loading is not
counted.

- generated: the job's own path from planned prompts to the commit mark: read, write replies, judge, compress, sync.
- plain: ``LLM.generate`` of the same token ids with the same sampling settings and seeds, hence the same tokens.
- … without seeds: each request without random numbers of its own; other tokens, so the figure is tokens per second.
- captured: a caching run over the generated replies with the teacher, in vLLM, with the default capture.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import FOLDER, as_config, captured
from benchmarks.support.corpus import human_eval_chats
from benchmarks.support.results import Row, at_least, at_most, exit_status, write_results
from schemas.generate_config import GenerateConfig
from schemas.load import validate
from teacher_cache.engines import open_engine
from teacher_cache.generated.generated_place import read_generated, replies_of
from teacher_cache.generation import generation_job
from teacher_cache.generation.generation_job import GenerationSummary
from teacher_cache.generation.sampler import Asked
from teacher_cache.generation.vllm_sampler import VllmSampler
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage

REPETITIONS = 6
PROMPTS, SAMPLES, NEW_TOKENS = 8, 2, 96
MIN_OF_PLAIN, MAX_WITH_CAPTURE = 0.95, 1.2
PLACE = FOLDER / "generation"


def main() -> int:
    """Run the benchmark; returns the exit status."""
    config, cache = settings(), cache_config()
    with VllmSampler(config) as sampler:
        summary = generated(sampler, config)
        requests = requests_of(config)
        with open_engine(cache) as engine:
            ways: dict[str, Callable[[], float]] = {
                "plain": lambda: plain(sampler, requests, seeded=True),
                "generated": lambda: speed(generated(sampler, config)),
                "captured": lambda: captured(engine, cache).seconds,
                "unseeded": lambda: plain(sampler, requests, seeded=False),
            }
            found = measured(ways)
    median = {name: statistics.median(values) for name, values in found.items()}
    of_plain = ratio(found["generated"], found["plain"])
    with_capture = 1 + ratio(found["captured"], [summary.new_tokens / each for each in found["generated"]])
    equal, accepted = ids_that_are_equal(config)
    rows = [
        Row("generated, judged, written, committed", median["generated"], "tok/s"),
        Row("plain LLM.generate, same seeds", median["plain"], "tok/s"),
        Row("… without seeds", median["unseeded"], "tok/s"),
        at_least("generated ÷ plain", of_plain, "×", MIN_OF_PLAIN),
        Row("generated ÷ plain without seeds", ratio(found["generated"], found["unseeded"]), "×"),
        at_most("generate and capture ÷ generate", with_capture, "×", MAX_WITH_CAPTURE),
        at_least("captured sequences with the ids that were generated", 100 * equal / accepted, "%", 100),
    ]
    raw = {
        "tokens_per_second": {name: values for name, values in found.items() if name != "captured"},
        "capture_seconds": found["captured"],
        "new_tokens": summary.new_tokens,
        "replies": summary.replies,
        "accepted": accepted,
        "rejected": summary.rejected,
        "settings": config.sampling.model_dump(),
    }
    what = f"SmolLM2-135M in float32, {PROMPTS} prompts × {SAMPLES} replies of up to {NEW_TOKENS} tokens"
    write_results("generation", f"Generation: {what}, medians of {REPETITIONS} repetitions", rows, raw)
    return exit_status(rows)


def measured(ways: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each way gives, once per repetition; in every other one they come in the opposite order."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for repetition in range(REPETITIONS):
        names = list(ways)[:: -1 if repetition % 2 else 1]
        for name in names:
            found[name].append(ways[name]())
        print(f"repetition {repetition + 1}: " + ", ".join(f"{n} {v[-1]:.4g}" for n, v in found.items()), flush=True)
    return found


def ratio(values: list[float], others: list[float]) -> float:
    """Median of the ratios within repetitions, which what else the machine does changes least."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def settings() -> GenerateConfig:
    """The generation's configuration; writes the prompts."""
    PLACE.mkdir(parents=True, exist_ok=True)
    prompts = PLACE / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(chat) + "\n" for chat in human_eval_chats()[:PROMPTS]), encoding="utf-8")
    tree = {
        "generator": {"path": str(make_teacher()), "dtype": "float32"},
        "engine": {"kind": "vllm", "eager": True, "cpu_kv_cache_gib": 1},
        "prompts": {"sources": [{"path": str(prompts)}], "replies": "replace", "max_tokens": 768},
        "sampling": {"samples": SAMPLES, "max_new_tokens": NEW_TOKENS, "temperature": 0.8},
        "output": {"path": str(PLACE / "replies")},
    }
    return validate(GenerateConfig, tree, "benchmark")


def cache_config() -> Any:
    """The configuration of a caching run over the replies."""
    return as_config(
        {
            "teacher": {"path": str(make_teacher()), "dtype": "float32"},
            "corpus": {"sources": [{"path": str(PLACE / "replies"), "format": "generated"}], "max_tokens": 1024},
            "output": {"path": str(PLACE / "cache")},
        }
    )


def generated(sampler: VllmSampler, config: GenerateConfig) -> GenerationSummary:
    """Run a whole generation with a loaded sampler."""
    shutil.rmtree(config.output.path, ignore_errors=True)
    with mock.patch.object(generation_job, "open_sampler", return_value=nullcontext(sampler)):
        return generation_job.generate(config)


def speed(summary: GenerationSummary) -> float:
    """New tokens per second, from reading a unit to its commit mark."""
    return summary.new_tokens_per_second


def requests_of(config: GenerateConfig) -> list[Asked]:
    """What was asked of the sampler."""
    storage = Storage(config.output.path)
    manifest = read_generated(storage)
    return [
        Asked(prompt.prompt_ids, config.sampling, tuple(manifest.stop_tokens[prompt.layer]), reply.seed)
        for prompt, reply in replies_of(storage, manifest)
    ]


def plain(sampler: VllmSampler, requests: list[Asked], seeded: bool) -> float:
    """New tokens per second of ``LLM.generate``, the prefix cache being empty at its start."""
    parameters = [sampler._sampling(one) for one in requests]
    for one in parameters:
        one.seed = one.seed if seeded else None
    prompts = [{"prompt_token_ids": one.prompt_ids.tolist()} for one in requests]
    sampler._llm.reset_prefix_cache()
    started = time.perf_counter()
    outputs = sampler._llm.generate(prompts, parameters, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs) / (time.perf_counter() - started)


def ids_that_are_equal(config: GenerateConfig) -> tuple[int, int]:
    """Captured sequences whose ids are those that were generated, and accepted replies."""
    storage = Storage(config.output.path)
    wanted = {
        f"{prompt.source_id}/{reply.sample}": [*prompt.prompt_ids.tolist(), *reply.reply_ids.tolist()]
        for prompt, reply in replies_of(storage, read_generated(storage))
        if not reply.reason
    }
    cache = CacheReader(str(PLACE / "cache"), ("tokens",))
    found = map(cache.read_tokens, range(len(cache)))
    return sum(sample.input_ids.tolist() == wanted[sample.source_id] for sample in found), len(wanted)


if __name__ == "__main__":
    sys.exit(main())
