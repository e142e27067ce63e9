import pytest
import torch

from support.ffn_models import tiny_ffn_model
from support.tensor_memory import TensorMemory
from trainer.student.ffn_importance import channel_sums
from trainer.student.ffns import find_ffns


def padded(lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    length = max(lengths)
    ids = torch.randint(3, 61, (len(lengths), length), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask}


def alone(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [ids[mask] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def test_dense_sums_are_those_of_each_sample_alone() -> None:
    model = tiny_ffn_model("llama")
    given = [padded([9, 4, 7]), padded([3], seed=1)]
    found = channel_sums(model, find_ffns(model), given)
    for layer, one in zip(model.model.layers, found, strict=True):
        seen: list[torch.Tensor] = []
        handle = layer.mlp.down_proj.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0][0]))
        with torch.no_grad():
            for ids in (ids for batch in given for ids in alone(batch)):
                model(ids[None])
        handle.remove()
        torch.testing.assert_close(one.abs_EF[0], torch.cat(seen).abs().sum(0))
        assert one.tokens_E.tolist() == [23]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # rows in two orders
@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen3_5_moe_text"])
def test_sums_of_experts_are_those_of_their_own_tokens(model_type: str, dtype: torch.dtype) -> None:
    """Against a loop over experts, of the hidden states and choices that each sample alone gives."""
    model = tiny_ffn_model(model_type).to(dtype)
    batch = padded([9, 4, 7])
    sums = [one for one in channel_sums(model, find_ffns(model), [batch]) if one.ffn.is_fused]
    assert sums
    for one in sums:
        experts, given = one.ffn.module, []
        handle = experts.register_forward_pre_hook(lambda module, args, given=given: given.append(args[:2]))
        with torch.no_grad():
            for ids in alone(batch):
                model(ids[None])
        handle.remove()
        hidden_TD, chosen_TK = (torch.cat(parts) for parts in zip(*given, strict=True))
        for expert in range(4):
            own = hidden_TD[(chosen_TK == expert).any(1)]
            gate, up = (own @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            wanted = (torch.nn.functional.silu(gate) * up).abs().sum(0)
            torch.testing.assert_close(one.abs_EF[expert], wanted.detach().double(), rtol=1e-5, atol=1e-5)
            assert one.tokens_E[expert] == len(own)
        assert one.tokens_E.sum() == 20 * 2


def test_nothing_is_left_on_the_model() -> None:
    model = tiny_ffn_model("qwen3_5_moe_text")
    channel_sums(model, find_ffns(model), [padded([5])])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any("_apply_gate" in vars(module) for module in model.modules())


def test_half_precision_is_added_up_in_float64() -> None:
    model = tiny_ffn_model("llama")
    exact = channel_sums(model, find_ffns(model), [padded([60] * 8)] * 8)
    rounded = channel_sums(model.bfloat16(), find_ffns(model), [padded([60] * 8)] * 8)
    for one, other in zip(exact, rounded, strict=True):
        assert other.abs_EF.dtype == torch.float64
        torch.testing.assert_close(other.abs_EF, one.abs_EF, rtol=0.03, atol=0)


@pytest.mark.parametrize("model_type", ["llama", "qwen3_5_moe_text"])
def test_activations_are_not_kept(model_type: str) -> None:
    model = tiny_ffn_model(model_type)
    peaks = []
    for batches in (1, 6):
        with TensorMemory() as memory:
            channel_sums(model, find_ffns(model), [padded([20] * 4)] * batches)
        peaks.append(memory.peak)
    assert peaks[1] < 1.2 * peaks[0]
