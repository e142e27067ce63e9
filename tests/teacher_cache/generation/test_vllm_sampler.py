"""vLLM writes what the reference does, whatever it writes beside it. Loading takes seconds, so one engine for all."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.generate_config import GenerateConfig, SamplingConfig
from support.models import write_random_teacher
from support.talking import generate_config, write_prompts
from teacher_cache.generated.generated_place import read_generated, replies_of
from teacher_cache.generation.generation_job import generate
from teacher_cache.generation.reference_sampler import ReferenceSampler
from teacher_cache.generation.sampler import Asked
from teacher_cache.generation.vllm_sampler import VllmSampler
from teacher_cache.shards.storage import Storage

ENGINE = {"kind": "vllm", "eager": True, "cpu_kv_cache_gib": 1, "max_sequences": 8}
STOPS = (0, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    write_random_teacher(folder / "teacher", num_attention_heads=4, num_key_value_heads=2)
    write_prompts(folder / "prompts.jsonl", 12)
    return folder


def config(folder: Path, kind: str = "vllm") -> GenerateConfig:
    return generate_config(
        folder / "teacher", folder / "prompts.jsonl", folder / "replies", engine={**ENGINE, "kind": kind}
    )


@pytest.fixture(scope="module")
def sampler(folder: Path) -> Iterator[VllmSampler]:
    with VllmSampler(config(folder)) as sampler:
        yield sampler


def asked(count: int, **settings: float) -> list[Asked]:
    rng = np.random.default_rng(0)
    sampling = SamplingConfig.model_validate({"max_new_tokens": 40, **settings})
    prompts = [rng.integers(3, 380, rng.integers(1, 64)).astype(np.uint32) for _ in range(count)]
    return [Asked(ids, sampling, STOPS, seed) for seed, ids in enumerate(prompts)]


def written(sampler: VllmSampler | ReferenceSampler, requests: list[Asked]) -> list[tuple[list[int], str]]:
    heard: list[int] = []
    found = sampler.write(requests, heard.append)
    assert sum(heard) == len(requests)
    return [(one.ids.tolist(), one.finish) for one in found]


def test_greedy_replies_are_those_of_the_reference(sampler: VllmSampler, folder: Path) -> None:
    requests = [one._replace(stop_ids=tuple(range(16))) for one in asked(12, temperature=0)]
    found = written(sampler, requests)
    with ReferenceSampler(config(folder, "transformers")) as reference:
        assert found == written(reference, requests)
    assert {finish for _, finish in found} == {"stop", "length"}


def test_a_reply_does_not_depend_on_what_is_written_beside_it(sampler: VllmSampler) -> None:
    """Twenty requests, eight at a time, in two orders, twice, and some alone; several replies to one prompt."""
    requests = asked(17, temperature=0.8)
    requests += [requests[0]._replace(seed=100 + n) for n in range(3)]
    found = written(sampler, requests)
    assert written(sampler, requests[::-1])[::-1] == found
    assert written(sampler, requests) == found
    assert [written(sampler, [requests[n]])[0] for n in (0, 7, 19)] == [found[n] for n in (0, 7, 19)]
    assert len({tuple(ids) for ids, _ in (found[0], *found[17:])}) == 4, "each seed has a reply of its own"
    for ids, finish in found:
        assert not set(STOPS) & {*ids[:-1]}
        assert finish == ("stop" if ids[-1] in STOPS else "length")
        assert finish == "stop" or len(ids) == 40


def test_prompts_that_do_not_fit_a_step_wait_for_the_next(sampler: VllmSampler) -> None:
    """vLLM fails where a prompt is read in parts on a CPU and its reply has a seed."""
    settings = sampler._llm.llm_engine.vllm_config.scheduler_config
    assert settings.max_num_batched_tokens == 8192
    assert not settings.enable_chunked_prefill
    requests = asked(8, max_new_tokens=3)
    scheduler = sampler._llm.llm_engine.engine_core.engine_core.scheduler
    longest = max(len(one.prompt_ids) for one in requests)
    with mock.patch.object(scheduler, "max_num_scheduled_tokens", longest + 5):
        found = written(sampler, requests)
    assert found == written(sampler, requests)


def test_shares_of_tokens_are_those_of_the_model(sampler: VllmSampler, folder: Path) -> None:
    (one,) = asked(1, temperature=2.0, top_k=4, max_new_tokens=1)
    found = written(sampler, [one._replace(seed=seed) for seed in range(600)])
    model = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(one.prompt_ids.astype(np.int64))[None]).logits[0, -1].double()
    best = torch.topk(logits / 2.0, 4)
    counts = np.array([sum(ids == [token] for ids, _ in found) for token in best.indices.tolist()])
    expected = 600 * torch.softmax(best.values, 0).numpy()
    assert counts.sum() == 600
    assert ((counts - expected) ** 2 / expected).sum() < 16.3, "0.1 % of fair draws exceed it; the seeds are fixed"


def test_a_whole_generation(sampler: VllmSampler, folder: Path) -> None:
    settings = config(folder)
    with mock.patch("teacher_cache.generation.generation_job.open_sampler", return_value=nullcontext(sampler)):
        summary = generate(settings)
    assert summary.complete
    storage = Storage(settings.output.path)
    found = list(replies_of(storage, read_generated(storage)))
    assert len(found) == summary.replies == 36
    assert summary.new_tokens == sum(len(reply.reply_ids) for _, reply in found)
    requests = [Asked(prompt.prompt_ids, settings.sampling, STOPS, reply.seed) for prompt, reply in found]
    again = written(sampler, requests)
    assert [(reply.reply_ids.tolist(), reply.finish) for _, reply in found] == again
