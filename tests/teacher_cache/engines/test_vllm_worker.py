"""The worker's hooks where vLLM's model runners differ: embeddings instead of ids, M-RoPE positions [3, N]."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from teacher_cache.engines.known import check_known, check_on_cpu
from teacher_cache.engines.vllm_worker import _Capture
from teacher_cache.records import Request

SEQUENCES = [np.array([5, 6, 7], np.uint32), np.array([9], np.uint32), np.array([5, 6], np.uint32)]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("embeddings", [False, True])
def test_sequences_are_found_with_any_model_inputs(rows: int, embeddings: bool) -> None:
    capture = _Capture.__new__(_Capture)
    capture._expected, capture._taps, capture._captured = defaultdict(list), {}, {}
    capture.expect([Request(ids, np.arange(len(ids), dtype=np.int32)) for ids in SEQUENCES], 0)
    ids = torch.from_numpy(np.concatenate([SEQUENCES[i] for i in (2, 0, 1)]).astype(np.int64))
    positions = torch.tensor([0, 1, 0, 1, 2, 0])
    capture._before_embedding(None, (ids,))
    given = {
        "input_ids": None if embeddings else ids,
        "positions": positions if rows == 1 else positions.expand(rows, -1),
    }
    capture._before_forward(None, (), given)
    assert capture._step is not None
    found = [(one.number, one.start, one.stop) for one in capture._step.sequences]
    assert found == [(2, 0, 2), (0, 2, 5), (1, 5, 6)]
    assert torch.equal(capture._ids_N, ids)


def config(kind: str, max_tokens: int, dtype: str = "bfloat16", **capture: object) -> SimpleNamespace:
    return SimpleNamespace(
        engine=SimpleNamespace(kind=kind),
        corpus=SimpleNamespace(max_tokens=max_tokens),
        teacher=SimpleNamespace(dtype=dtype, path="here"),
        capture=CaptureConfig.model_validate(capture),
    )


def model(kind: str, **settings: object) -> SimpleNamespace:
    text = SimpleNamespace(model_type=kind, **settings)
    return SimpleNamespace(get_text_config=lambda: text)


def test_windows_that_vllm_makes_too_long_are_refused_if_a_sequence_exceeds_them() -> None:
    cohere = model("cohere2", sliding_window=100)
    check_known(config("vllm", 100), cohere)
    check_known(config("transformers", 200), cohere)
    with pytest.raises(
        UserError, match=r"corpus\.max_tokens: 101: vLLM .* of a cohere2 teacher .*set it to 100 or less"
    ):
        check_known(config("vllm", 101), cohere)


def test_residual_streams_that_vllm_scales_are_refused() -> None:
    deepseek = model("deepseek_v3")
    check_known(config("vllm", 100, "bfloat16", hidden={}), deepseek)
    check_known(config("vllm", 100, "float16"), deepseek)
    with pytest.raises(UserError, match=r"capture\.hidden: vLLM scales the residual stream of a deepseek_v3"):
        check_known(config("vllm", 100, "float16", hidden={}), deepseek)


def test_per_layer_embeddings_that_vllm_leaves_out_are_refused() -> None:
    check_known(config("transformers", 100), model("gemma3n_text"))
    with pytest.raises(UserError, match=r"teacher\.path: here: vLLM .* per-layer embeddings of a gemma3n_text teacher"):
        check_known(config("vllm", 100), model("gemma3n_text"))


def test_latent_attention_is_refused_on_cpus() -> None:
    check_on_cpu(config("vllm", 100), SimpleNamespace(model_type="llama"))
    with pytest.raises(UserError, match=r"teacher\.path: here: vLLM .* latent attention of a deepseek_v3 teacher"):
        check_on_cpu(config("vllm", 100), SimpleNamespace(model_type="deepseek_v3", kv_lora_rank=512))
