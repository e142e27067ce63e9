"""Missing layers, and layers whose attention rows cannot be stored, are rejected before anything runs."""

from types import SimpleNamespace
from typing import Any

import pytest

from schemas.cache_config import AttentionCapture, CaptureConfig, FinalCapture, HiddenCapture, layer_number
from schemas.errors import UserError
from teacher_cache.signals.side_table import check_teacher


def config(**changes: Any) -> SimpleNamespace:
    settings = {"model_type": "llama", "num_hidden_layers": 6, "num_attention_heads": 8, "hidden_size": 33}
    return SimpleNamespace(**{**settings, **changes})


def check(text_config: SimpleNamespace, max_tokens: int = 100, **capture: Any) -> None:
    check_teacher(CaptureConfig(**capture), text_config, max_tokens)


@pytest.mark.parametrize(
    ("layer", "number"), [(1, 1), (6, 6), (0.25, 12), (0.5, 24), (0.75, 36), (1.0, 48), (0.001, 1)]
)
def test_fractions_of_the_depth_are_the_recipes_layers(layer: float, number: int) -> None:
    assert layer_number(layer, 48) == number


def test_layer_numbers_ascend_in_any_order_of_the_configuration() -> None:
    assert HiddenCapture(layers=[0.75, 1, 0.5]).layer_numbers(48) == [1, 24, 36]


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        ({"hidden": HiddenCapture(layers=[7])}, r"capture\.hidden\.layers: 7: the teacher has layers 1 to 6"),
        ({"hidden": HiddenCapture(layers=[3, 0.5])}, r"are layers \[3, 3\] of 6; list each only once"),
        (
            {"hidden": HiddenCapture(dtype="int4")},
            r"capture\.hidden\.dtype: int4 packs two .* the teacher has an odd hidden size, 33",
        ),
        ({"final": FinalCapture(dtype="int4")}, r"capture\.final\.dtype: int4 packs two channels per byte"),
        ({"attention": AttentionCapture(layer=9)}, r"capture\.attention\.layer: 9: the teacher has layers 1 to 6"),
        (
            {"attention": AttentionCapture(heads=9)},
            r"capture\.attention\.heads: 9: the teacher has attention heads 0 to 7",
        ),
        ({"attention": AttentionCapture(heads=[8])}, r"heads: \[8\]"),
        ({"attention": AttentionCapture(heads=[1, 1])}, r"list each attention head once"),
    ],
)
def test_layers_and_heads_the_teacher_lacks_are_refused(capture: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(config(), **capture)


HYBRID = ["linear_attention"] * 5 + ["full_attention"]
WINDOWS = ["sliding_attention", "full_attention"] * 3


@pytest.mark.parametrize(
    ("changes", "layer", "kind"),
    [
        ({"kv_lora_rank": 512}, 1.0, "multi-head latent attention"),
        ({"model_type": "gpt_oss"}, 1.0, "attention with sinks"),
        ({"num_kv_shared_layers": 2}, 5, "attention with another layer's keys"),
        ({"model_type": "falcon", "alibi": True}, 1.0, "attention with linear biases"),
        ({"model_type": "bloom"}, 1.0, "attention with linear biases"),
        ({"layer_types": HYBRID}, 5, "linear_attention"),
        ({"layer_types": WINDOWS, "sliding_window": 64}, 1, "sliding_attention"),
        ({"sliding_window": 64}, 1.0, "sliding_attention"),
    ],
)
def test_the_attention_type_of_a_refused_layer_is_named(changes: dict[str, Any], layer: float, kind: str) -> None:
    with pytest.raises(UserError, match=rf"is of type {kind}"):
        check(config(**changes), attention=AttentionCapture(layer=layer))
    check(config(**changes), hidden=HiddenCapture(layers=[layer]))


@pytest.mark.parametrize(
    ("changes", "layer"),
    [
        ({"layer_types": HYBRID}, 1.0),
        ({"num_kv_shared_layers": 2}, 4),
        ({"model_type": "falcon", "alibi": False}, 1.0),
        ({"model_type": "falcon_h1", "layer_types": ["hybrid"] * 6}, 1.0),
        ({"layer_types": WINDOWS, "sliding_window": 64}, 2),
        ({"layer_types": WINDOWS, "sliding_window": 100}, 1),
        ({"sliding_window": 4096}, 1.0),
        ({"sliding_window": 64, "use_sliding_window": False}, 1.0),
        ({"sliding_window": None, "kv_lora_rank": None}, 3),
    ],
)
def test_full_attention_and_windows_of_the_longest_sequence_are_accepted(changes: dict[str, Any], layer: float) -> None:
    check(config(**changes), attention=AttentionCapture(layer=layer))
