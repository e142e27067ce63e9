"""The attention implementation that a configuration needs, and the reference engine's results with it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import Gemma2Config, GPTJConfig, LlamaConfig

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import validate
from support.attention_models import CONFIGS, special_model, without_the_feature, write_special
from support.models import VOCAB_SIZE
from support.workspace import cache_tree
from teacher_cache.attention_implementation import check_attention, exact_attention
from teacher_cache.engines import open_engine
from teacher_cache.records import Request

K, HEADS, KEYS = 8, 4, 6


@pytest.mark.parametrize("kind", CONFIGS)
def test_features_that_sdpa_drops_need_eager_attention(kind: str) -> None:
    config = CONFIGS[kind]()
    assert exact_attention(config) == "eager"
    check_attention(config, "eager", "key")
    with pytest.raises(UserError, match=r"^student\.attention: sdpa drops .* of a \w+ model; set it to eager"):
        check_attention(config, "sdpa", "student.attention")


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind.startswith("sinks")])
def test_flash_attention_2_has_no_sinks(kind: str) -> None:
    with pytest.raises(UserError, match=r"^key: flash_attention_2 drops .*; set it to eager, or remove it$"):
        check_attention(CONFIGS[kind](), "flash_attention_2", "key")


def test_other_models_keep_sdpa() -> None:
    for config in (LlamaConfig(), Gemma2Config(attn_logit_softcapping=None)):
        assert exact_attention(config) == "sdpa"
        check_attention(config, "flash_attention_2", "key")
    check_attention(Gemma2Config(), "flash_attention_2", "key")  # its kernel caps
    assert exact_attention(GPTJConfig()) == "eager"  # its class supports nothing else


def test_no_other_model_of_transformers_passes_on_what_sdpa_drops() -> None:
    """Fails when a new version of transformers adds another one: inspect it, then add it here."""
    models = Path(transformers.__file__).parent / "models"
    passes_on = {"softcap": set(), "s_aux": set()}
    for path in models.glob("*/modeling_*.py"):
        text = path.read_text(encoding="utf-8")
        for name, found in passes_on.items():
            if re.search(rf"\b{name}=self\.", text):
                found.add(path.parent.name)
                assert name != "softcap" or "self.attn_logit_softcapping" in text, path
                assert name != "s_aux" or "_supports_sdpa = False" in text, path
    assert {"gemma2", "vaultgemma"} <= passes_on["softcap"]
    assert {"gpt_oss", "granite_swa", "mimo_v2_flash"} <= passes_on["s_aux"]


@torch.inference_mode()
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_reference_engine_gives_what_eager_attention_gives(kind: str, tmp_path: Path) -> None:
    folder = write_special(tmp_path / "teacher", kind)
    capture = {"logits": {"k": K}, "draws": None, "hidden": {"layers": [2], "dtype": "bfloat16"}}
    with_rows = kind.startswith("soft cap")  # rows of attention with sinks cannot be stored
    if with_rows:
        capture |= {"attention": {"layer": 2, "heads": HEADS, "keys": KEYS}}
    config = validate(CacheConfig, cache_tree(folder, tmp_path, tmp_path / "cache", capture=capture), "test")
    sequences = [np.random.default_rng(n).integers(1, VOCAB_SIZE, n).astype(np.uint32) for n in (30, 20, 7)]
    rows = [np.arange(len(ids), dtype=np.int32) for ids in sequences]
    with open_engine(config) as engine:
        found = engine.score([Request(ids, at) for ids, at in zip(sequences, rows, strict=True)])
    model = special_model(kind)
    for captured, ids in zip(found, sequences, strict=True):
        inputs = torch.from_numpy(ids.astype(np.int64))[None]
        output = model(inputs, use_cache=False, output_attentions=True)
        right = output.logits[0].log_softmax(-1)
        wrong = without_the_feature(model, inputs)[0].log_softmax(-1)
        stored = torch.from_numpy(captured.logits.ids.astype(np.int64))
        np.testing.assert_allclose(captured.logits.logprobs, right.gather(1, stored), atol=2e-4)
        if len(ids) > 10:
            assert (right - wrong).abs().max() > 0.05, "the feature does not show"
        if with_rows:
            attention = captured.side["attention"]
            weights_PHS = output.attentions[1][0].transpose(0, 1)[:, attention.heads.tolist()]
            largest = weights_PHS.sort(dim=2, descending=True).values[:, :, :KEYS]
            np.testing.assert_allclose(attention.weights[:, :, : largest.shape[2]], largest, atol=1e-5)
