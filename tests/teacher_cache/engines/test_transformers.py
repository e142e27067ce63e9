"""The reference engine: memory, and what it refuses before it runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, XGLMConfig, XGLMForCausalLM

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import validate
from support.attention_models import write_special
from support.models import VOCAB_SIZE, write_random_teacher
from support.tensor_memory import TensorMemory
from support.workspace import cache_tree
from teacher_cache.engines import open_engine
from teacher_cache.engines import transformers as module
from teacher_cache.records import Request

CAPTURE = {"logits": {"k": 4}, "draws": None, "attention": {"heads": 2, "keys": 6}}


def make_config(teacher: Path, **changes: object) -> CacheConfig:
    tree = cache_tree(teacher, teacher, teacher / "cache", capture=CAPTURE, **changes)
    return validate(CacheConfig, tree, "test")


def test_memory_of_attention_rows_is_not_quadratic(tmp_path: Path) -> None:
    """8,192 tokens, 8 heads: all attention rows take 2.1 GB, the wanted ones 17 MB."""
    length = 8192
    changes = {"num_hidden_layers": 1, "num_attention_heads": 8, "max_position_embeddings": length}
    config = make_config(write_random_teacher(tmp_path, **changes), max_tokens=length)
    ids = np.random.default_rng(0).integers(3, VOCAB_SIZE, length).astype(np.uint32)
    rows = np.arange(127, length, 128, dtype=np.int32)
    with open_engine(config) as engine, TensorMemory() as memory:
        (captured,) = engine.score([Request(ids, rows)])
    assert 17e6 < memory.peak < 150e6
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    short = torch.from_numpy(ids[:512].astype(np.int64))[None]
    with torch.inference_mode():
        weights_HSS = model(short, output_attentions=True).attentions[0][0]
    sample = captured.side["attention"]
    wanted = weights_HSS[sample.heads.tolist()][:, rows[:4]].transpose(0, 1).sort(dim=2, descending=True).values
    np.testing.assert_allclose(sample.weights[:4], wanted[:, :, :6], atol=1e-5)


def test_eager_attention_that_does_not_fit_is_refused_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 12 * 4 * 100**2)
    config = make_config(write_special(tmp_path, "soft cap, Gemma 2"), max_tokens=100)
    open_engine(config).close()
    with pytest.raises(UserError, match=r"^corpus\.max_tokens: 101: this teacher needs eager .* set it to 100 "):
        open_engine(config.model_copy(update={"corpus": config.corpus.model_copy(update={"max_tokens": 101})}))
    llama = write_random_teacher(tmp_path / "llama")
    open_engine(make_config(llama, max_tokens=500)).close()  # SDPA is not quadratic in memory


def test_attention_without_query_and_key_is_refused_at_startup(tmp_path: Path) -> None:
    shape = {"vocab_size": VOCAB_SIZE, "d_model": 32, "ffn_dim": 32, "num_layers": 1, "attention_heads": 2}
    XGLMForCausalLM(XGLMConfig(**shape)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^teacher: XGLMAttention does not use"):
        open_engine(make_config(tmp_path))


def test_two_engines_in_one_process_capture_their_own_rows(tmp_path: Path) -> None:
    """A tap belongs to one attention module."""
    ids = np.random.default_rng(0).integers(3, VOCAB_SIZE, 20).astype(np.uint32)
    request = Request(ids, np.arange(20, dtype=np.int32))
    for seed, name in enumerate("ab"):
        write_random_teacher(tmp_path / name, seed=seed)
    with open_engine(make_config(tmp_path / "a")) as one, open_engine(make_config(tmp_path / "b")) as other:
        first, second = (engine.score([request])[0].side["attention"] for engine in (one, other))
        again = one.score([request])[0].side["attention"]
    assert np.array_equal(first.weights, again.weights)
    assert not np.allclose(first.weights, second.weights)
