"""Maximum sequence length: from published configurations, in the plan, and in the reference engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    DeepseekV3Config,
    FalconMambaConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MptConfig,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
)

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import validate
from support.models import VOCAB_SIZE, tiny_tokenizer, write_random_teacher, write_text_corpus
from support.workspace import cache_tree
from teacher_cache import job
from teacher_cache.engines import open_engine
from teacher_cache.lengths import check_length, max_length
from teacher_cache.records import Request
from teacher_cache.shards.reader import CacheReader


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **settings}


YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
DEEPSEEK = {"factor": 40.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (LlamaConfig(max_position_embeddings=2048), 2048),
        (GPT2Config(n_positions=1024), 1024),
        (OPTConfig(max_position_embeddings=2048), 2048),
        (MptConfig(max_seq_len=512), 512),
        (BloomConfig(), None),
        (BloomConfig(seq_length=2048), 2048),
        (FalconMambaConfig(), None),
        (CohereConfig(max_position_embeddings=8192, model_max_length=131072), 131072),
        (LlamaConfig(max_position_embeddings=131072, rope_parameters=rope("llama3", **LLAMA3)), 131072),
        (LlamaConfig(max_position_embeddings=2048, rope_parameters=rope("linear", factor=4.0)), 8192),
        (LlamaConfig(max_position_embeddings=2048, rope_parameters=rope("dynamic", factor=2.0)), 4096),
        (Qwen2Config(max_position_embeddings=32768, rope_parameters=rope("yarn", **YARN)), 131072),
        (Qwen2Config(max_position_embeddings=131072, rope_parameters=rope("yarn", **YARN)), 131072),
        (DeepseekV3Config(max_position_embeddings=163840, rope_parameters=rope("yarn", **DEEPSEEK)), 163840),
        (Gemma3TextConfig(max_position_embeddings=131072), 131072),
    ],
)
def test_maximum_length_of_published_configurations(config: PreTrainedConfig, wanted: int | None) -> None:
    assert max_length(config.get_text_config()) == wanted


def longrope(original: int, extended: int, **changes: Any) -> dict[str, Any]:
    factors = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16, "factor": extended / original}
    settings = rope("longrope", original_max_position_embeddings=original, **factors)
    return {"max_position_embeddings": extended, "rope_parameters": settings, **changes}


def job_config(folder: Path, teacher: Path, **corpus: Any) -> CacheConfig:
    tree = cache_tree(
        teacher, folder / "corpus", folder / "cache", capture={"logits": {"k": 8, "positions": "all"}, "draws": None}
    )
    tree["corpus"] |= corpus
    return validate(CacheConfig, tree, "test")


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_too_long_sequences_are_refused_before_tokenization(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    teacher = write_random_teacher(tmp_path / "teacher", max_position_embeddings=64)
    write_text_corpus(tmp_path / "corpus")
    monkeypatch.setattr("teacher_cache.plan.Corpus", None)
    config = job_config(tmp_path, teacher, max_tokens=65)
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"kind": engine})})
    with pytest.raises(
        UserError, match=r"^corpus\.max_tokens: 65: the teacher supports at most 64 tokens; set it to 64"
    ):
        job.load_or_make_plan(config, job.Storage(config.output.path))
    assert not (tmp_path / "cache/manifest.json").exists()


def learned_positions(kind: str) -> Any:
    shape = {"vocab_size": VOCAB_SIZE, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_positions=32, n_embd=32, n_layer=1, n_head=2, **shape))
    sizes = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return OPTForCausalLM(OPTConfig(max_position_embeddings=32, word_embed_proj_dim=32, **sizes, **shape))


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_sequences_of_exactly_the_maximum_length_are_scored(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "teacher"
    if kind == "llama":
        write_random_teacher(folder, max_position_embeddings=32)
    else:
        torch.manual_seed(0)
        learned_positions(kind).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    write_text_corpus(tmp_path / "corpus", documents=2)
    config = job_config(tmp_path, folder, max_tokens=32)
    job.run(config)
    reader = CacheReader(config.output.path)
    assert reader.num_tokens.max() == 32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    position = int(reader.num_tokens.argmax())
    ids, stored = reader.read_tokens(position).input_ids.astype(np.int64), reader.read_logits(position)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(ids)[None]).logits[0].log_softmax(-1).numpy()
    found = np.take_along_axis(wanted, stored.ids.astype(np.int64), axis=1)
    assert np.abs(found - stored.logprobs).max() <= 1 / 32 + 1e-4
    with (
        open_engine(config) as engine,
        pytest.raises(UserError, match=r"a sequence has 33 tokens, the teacher supports at most 32"),
    ):
        engine.score([Request(np.ones(33, np.uint32), np.arange(33, dtype=np.int32))])


ROTARY: dict[str, Callable[[], dict[str, Any]]] = {
    "longrope": lambda: longrope(32, 128),
    "dynamic": lambda: {"max_position_embeddings": 32, "rope_parameters": rope("dynamic", factor=4.0)},
}


@pytest.mark.parametrize("kind", ROTARY)
def test_length_dependent_rotary_frequencies_are_those_of_each_sequence(tmp_path: Path, kind: str) -> None:
    teacher = write_random_teacher(tmp_path / "teacher", **ROTARY[kind]())
    rng = np.random.default_rng(0)
    sequences = [rng.integers(3, VOCAB_SIZE, length).astype(np.uint32) for length in (20, 100, 32, 60, 33, 100)]

    def plain(ids: np.ndarray) -> np.ndarray:
        """Scores of a freshly loaded model."""
        model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
        with torch.inference_mode():
            return model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].log_softmax(-1).numpy()

    wanted = [plain(ids) for ids in sequences]
    requests = [Request(ids, np.arange(len(ids), dtype=np.int32)) for ids in sequences]
    with open_engine(job_config(tmp_path, teacher, max_tokens=100)) as engine:
        for order in ([0, 1, 2, 3, 4, 5], [3, 0, 2], [2]):
            for at, captured in zip(order, engine.score([requests[i] for i in order]), strict=True):
                ids = captured.logits.ids.astype(np.int64)
                np.testing.assert_allclose(
                    captured.logits.logprobs, np.take_along_axis(wanted[at], ids, axis=1), atol=2e-4
                )


def test_vllm_is_refused_where_short_sequences_would_get_the_frequencies_of_long_ones(tmp_path: Path) -> None:
    teacher = LlamaConfig(head_dim=32, **longrope(4096, 131072))
    config = job_config(tmp_path, tmp_path, max_tokens=4096)
    check_length(config, teacher)
    vllm = config.model_copy(update={"engine": config.engine.model_copy(update={"kind": "vllm"})})
    with pytest.raises(UserError, match=r"^corpus\.max_tokens: 4096: .*\(longrope\).*set it to 4095 or less, or"):
        check_length(vllm, teacher)
    for corpus in ({"max_tokens": 4095}, {"min_tokens": 4097, "max_tokens": 8192}):
        check_length(vllm.model_copy(update={"corpus": vllm.corpus.model_copy(update=corpus)}), teacher)
