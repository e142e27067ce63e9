import copy
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from schemas.errors import UserError
from schemas.train_config import FfnConfig
from support.ffn_models import WIDTH, tiny_ffn_model
from trainer.student import ffn_channels
from trainer.student.ffn_channels import ffn_widths, most_active, prune_ffns
from trainer.student.ffn_importance import channel_sums
from trainer.student.ffns import LAYOUTS, Ffn, find_ffns

MIXTURES = ("qwen2_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next")


def batches(seed: int = 0, samples: int = 8) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(3, 61, (samples, 20), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(20)[None] < torch.arange(20, 20 - samples, -1)[:, None]
    return [{"input_ids": ids * mask, "attention_mask": mask}]


def logits(model: PreTrainedModel) -> torch.Tensor:
    if model.config.model_type in MIXTURES:
        model.set_experts_implementation("batched_mm")  # takes float64
    with torch.no_grad():
        return model(input_ids=batches(seed=7)[0]["input_ids"], use_cache=False).logits


def zero_channels(ffn: Ffn, kept_EW: torch.Tensor) -> None:
    """The activations of all other channels are multiplied by 0."""
    reader = getattr(ffn.module, ffn.reader)
    zeros_EF = torch.zeros(ffn.n_experts, ffn.width, dtype=torch.float64).scatter(1, kept_EW, 1.0)
    weight = reader if ffn.is_fused else reader.weight
    weight.data *= zeros_EF[:, None, :] if ffn.is_fused else zeros_EF


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_equals_zeroing_the_least_active_channels(tmp_path: Path, model_type: str) -> None:
    model = tiny_ffn_model(model_type)
    zeroed = copy.deepcopy(model)
    before = logits(model)
    for one in channel_sums(zeroed, find_ffns(zeroed), batches()):
        zero_channels(one.ffn, most_active(one.abs_EF, 64))
    widths = prune_ffns(model, FfnConfig(remove=0.55) if model_type in MIXTURES else FfnConfig(width=64), batches())
    assert {after for _, after in widths.values()} == {64}
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    found, wanted = logits(reloaded), logits(zeroed)
    assert {ffn.width for ffn in find_ffns(reloaded)} == {64}
    assert (found - wanted).abs().max() < 1e-6 * wanted.abs().max()
    assert (wanted - before).abs().max() > 1e-2 * before.abs().max(), "the channels do not matter in this model"


def test_a_mixture_has_widths_of_several_kinds(tmp_path: Path) -> None:
    model = tiny_ffn_model("qwen3_5_moe_text")
    widths = prune_ffns(model, FfnConfig(remove=0.25), batches())
    assert widths == {"moe_intermediate_size": (160, 128), "shared_expert_intermediate_size": (96, 64)}
    assert (model.config.moe_intermediate_size, model.config.shared_expert_intermediate_size) == (128, 64)


@pytest.mark.parametrize(
    ("remove", "width"), [(0.125, 448), (0.15, 448), (0.25, 384), (0.1875, 448), (0.19, 384), (0.3, 384)]
)
def test_a_share_is_rounded_to_what_kernels_take(remove: float, width: int, caplog) -> None:
    ffns = find_ffns(tiny_ffn_model("llama", intermediate_size=512))
    with caplog.at_level(logging.INFO):
        assert ffn_widths(ffns, FfnConfig(remove=remove)) == {"intermediate_size": width}
    said = (
        f"would leave {512 * (1 - remove):.0f}; {width} are left, a multiple of 64: {1 - width / 512:.3g} are removed"
    )
    assert (said in caplog.text) == (512 * (1 - remove) != width)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"width": 256},
            r"^student\.ffn\.width: 256: the model's FFNs have 256 channels \(intermediate_size\); choose",
        ),
        (
            {"remove": 0.05},
            r"^student\.ffn\.remove: 0\.05: of 256 channels \(intermediate_size\) 243 would be left, and the nearest "
            r"multiple of 64 is 256; possible shares: 0\.25 to 0\.75$",
        ),
        ({"remove": 0.9}, r"nearest multiple of 64 is 0; possible shares: 0\.25 to 0\.75$"),
    ],
)
def test_widths_that_are_not_possible(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ffn_widths(find_ffns(tiny_ffn_model("llama", intermediate_size=256)), FfnConfig.model_validate(settings))


def test_a_share_that_leaves_a_multiple_is_not_remarked_on(caplog) -> None:
    with caplog.at_level(logging.INFO):  # 640 · (1 - 0.7) is not quite 192 in floating point
        assert ffn_widths(find_ffns(tiny_ffn_model("llama", intermediate_size=640)), FfnConfig(remove=0.7))
    assert "would leave" not in caplog.text


def test_a_narrow_ffn_has_no_possible_share() -> None:
    with pytest.raises(UserError, match=r"possible shares: none$"):
        ffn_widths(find_ffns(tiny_ffn_model("llama", intermediate_size=48)), FfnConfig(remove=0.5))


def test_of_equal_channels_the_first_are_kept() -> None:
    assert most_active(torch.tensor([[1.0, 2, 1, 3, 1], [0, 0, 0, 0, 0]]), 3).tolist() == [[0, 1, 3], [0, 1, 2]]


def test_rarely_chosen_experts_are_named(caplog, monkeypatch) -> None:
    model = tiny_ffn_model("qwen3_moe", mlp_only_layers=[])
    sums = channel_sums(model, find_ffns(model), batches())
    counts = [(one.ffn.layer, expert, int(n)) for one in sums for expert, n in enumerate(one.tokens_E.tolist())]
    limit = sorted(n for _, _, n in counts)[3] + 1
    rare = [f"layer {layer} expert {expert} ({n})" for layer, expert, n in counts if n < limit]
    monkeypatch.setattr(ffn_channels, "MIN_TOKENS", limit)
    monkeypatch.setattr(ffn_channels, "NAMED", len(rare) - 1)
    prune_ffns(model, FfnConfig(width=64), batches())
    assert f"student.ffn: {len(rare)} experts saw fewer than {limit} tokens" in caplog.text
    assert f"by chance: {', '.join(rare[:-1])}, …; raise student.ffn.samples" in caplog.text
    assert rare[-1] not in caplog.text


def test_experts_with_enough_tokens_are_not_mentioned(caplog, monkeypatch) -> None:
    monkeypatch.setattr(ffn_channels, "MIN_TOKENS", 1)
    prune_ffns(tiny_ffn_model("qwen3_moe"), FfnConfig(width=64), batches(samples=16))
    assert "experts saw fewer" not in caplog.text


def test_width_of_the_helper_is_that_of_the_models() -> None:
    assert {ffn.width for ffn in find_ffns(tiny_ffn_model("llama"))} == {WIDTH}
