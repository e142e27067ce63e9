"""Recorder against output_hidden_states, eager attention weights and FFN activations computed by hand."""

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch
from torch.nn.functional import softmax
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from schemas.errors import UserError
from support.flash_stand_in import FlashStandIn
from trainer.student.recorder import Recorded, Recorder, Wanted, together

LAYERS = 3
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WINDOW_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "qwen2": lambda: Qwen2Config(**{name: value for name, value in SHAPE.items() if name != "head_dim"}),
    "qwen3": lambda: Qwen3Config(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None),
    "gemma": lambda: GemmaConfig(**SHAPE),
    "gemma2": lambda: Gemma2Config(
        **SHAPE, attn_logit_softcapping=2.0, query_pre_attn_scalar=5, sliding_window=5, layer_types=WINDOW_TYPES
    ),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE, query_pre_attn_scalar=5, sliding_window=5, layer_types=WINDOW_TYPES),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SHAPE, **EXPERTS, mlp_only_layers=[1]),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **{name: value for name, value in SHAPE.items() if name != "head_dim"},
        **EXPERTS,
        shared_expert_intermediate_size=40,
    ),
}
FAMILIES = [family for family in CONFIGS if family != "qwen2_moe"]
IDS = torch.arange(2 * 12).mul(7).add(3).remainder(64).view(2, 12)
PACKED = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]])


def build(family: str, attention: str = "sdpa", **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation=attention, **settings)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(8)  # so that attention rows are not flat
    return model.eval()


def record(model: PreTrainedModel, inputs: dict[str, torch.Tensor] | None = None, **wanted: Any) -> Recorded:
    with closing(Recorder(model, Wanted(**wanted))) as recorder, recorder.recording() as recorded:
        model(**(inputs or {"input_ids": IDS}), use_cache=False)
    return recorded


def rows_of(recorded: Recorded) -> torch.Tensor:
    """Attention weights [R, H, L, L] from what was recorded, without a window."""
    ((query, key, scaling, softcap),) = recorded.query_key.values()
    assert key.shape[1] < query.shape[1]
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).mT * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return softmax(scores.masked_fill(future, -torch.inf), dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hidden_states_are_those_after_n_layers(family: str) -> None:
    model = build(family)
    hidden = record(model, hidden_layers=[3, 1, 2]).hidden
    assert sorted(hidden) == [1, 2, 3]
    reference = model.model(IDS, output_hidden_states=True)
    for layer in (1, 2):
        assert torch.equal(hidden[layer], reference.hidden_states[layer])
    assert torch.equal(model.model.norm(hidden[LAYERS]), reference.last_hidden_state)


class TupleLayer(torch.nn.Module):
    """A decoder layer of older model code, which returns a tuple."""

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, str]:
        return hidden + 1, "cache"


class TupleModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=2)
        self.layers = torch.nn.ModuleList([TupleLayer(), TupleLayer()])

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor]:
        for layer in self.layers:
            hidden, _ = layer(hidden)
        return (hidden,)


def test_layers_may_return_tuples() -> None:
    model: Any = TupleModel()
    recorder = Recorder(model, Wanted(hidden_layers=[1, 2]))
    with recorder.recording() as recorded:
        model(torch.zeros(1, 2, 3))
    assert {layer: hidden.mean().item() for layer, hidden in recorded.hidden.items()} == {1: 1, 2: 2}


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_of_recorded_query_and_key_are_the_eager_weights(family: str, layer: int) -> None:
    # transformers' SDPA leaves the soft cap out, so what enters a later layer is another thing there
    model = build(family, attention="eager" if family == "gemma2" else "sdpa")
    eager = build(family, attention="eager")
    ids = IDS[:, :5]  # no longer than the windows of Gemma 2 and 3
    recorded = record(model, {"input_ids": ids}, attention_layers=[layer])
    weights = eager(ids, output_attentions=True).attentions[layer - 1]
    torch.testing.assert_close(rows_of(recorded), weights, atol=2e-5, rtol=0)
    assert (weights[..., -1, :].amax(-1) > 0.3).any(), "rows too flat to tell apart"
    assert (recorded.query_key[layer].softcap is not None) == (family == "gemma2")


@torch.no_grad()
def test_several_layers_are_recorded_at_once() -> None:
    model = build("llama")
    found = record(model, attention_layers=[1, 3])
    for layer in (1, 3):
        alone = record(model, attention_layers=[layer])
        assert torch.equal(found.query_key[layer].query_RHLD, alone.query_key[layer].query_RHLD)
    assert not torch.equal(found.query_key[1].query_RHLD, found.query_key[3].query_RHLD)


def test_features_wanted_by_several_losses_are_recorded_once() -> None:
    wanted = together([Wanted(hidden_layers=[3, 1]), Wanted(attention_layers=[2]), Wanted([1, 2], [2], ffn=True)])
    assert wanted == Wanted([1, 2, 3], [2], ffn=True)
    assert together([]) == Wanted([], [], ffn=False)


@torch.no_grad()
def test_recorded_query_and_key_ignore_the_sliding_window() -> None:
    model, eager = build("gemma3"), build("gemma3", attention="eager")
    attentions = eager(IDS, output_attentions=True).attentions
    torch.testing.assert_close(rows_of(record(model, attention_layers=[2])), attentions[1], atol=2e-5, rtol=0)
    windowed = rows_of(record(model, attention_layers=[1]))
    assert (attentions[0][..., 11, :7] == 0).all()
    assert (windowed[..., 11, :7] > 0).all()


def activation_by_hand(mlp: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Mean |input of down_proj| of each token, [T], for a dense FFN or for fused experts behind a router."""
    hidden = hidden.flatten(0, 1)
    if not hasattr(mlp, "experts"):
        return (mlp.act_fn(mlp.gate_proj(hidden)) * mlp.up_proj(hidden)).abs().mean(-1)
    means = []
    for token in hidden:
        chosen = (mlp.gate.weight @ token).topk(EXPERTS["num_experts_per_tok"]).indices
        gate, up = (mlp.experts.gate_up_proj[chosen] @ token).chunk(2, dim=-1)
        ffns = list((mlp.experts.act_fn(gate) * up).abs().mean(-1))
        if hasattr(mlp, "shared_expert"):
            ffns.append(activation_by_hand(mlp.shared_expert, token[None, None])[0])
        means.append(torch.stack(ffns).mean())
    return torch.stack(means)


def ffn_by_hand(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    inputs: dict[int, torch.Tensor] = {}
    handles = [
        layer.mlp.register_forward_pre_hook(lambda mlp, args, i=i: inputs.update({i: args[0]}))
        for i, layer in enumerate(model.model.layers)
    ]
    model(ids)
    for handle in handles:
        handle.remove()
    layers = [activation_by_hand(layer.mlp, inputs[i]) for i, layer in enumerate(model.model.layers)]
    return torch.stack(layers).mean(0).view(ids.shape)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_ffn_inputs(family: str) -> None:
    model = build(family)
    ffn = record(model, ffn=True).ffn_abs_RL
    assert ffn is not None
    torch.testing.assert_close(ffn, ffn_by_hand(model, IDS), atol=0, rtol=1e-4)
    assert ffn.std() > 0.05 * ffn.mean(), "tokens too alike to tell apart"


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm"])
@torch.no_grad()
def test_ffn_inputs_of_experts_belong_to_their_token(experts: str) -> None:
    model = build("qwen3_moe", experts_implementation=experts)
    assert model.config._experts_implementation == experts
    ids = torch.randint(64, (3, 50))  # enough pairs an expert for the order within one to matter
    ffn = record(model, {"input_ids": ids}, ffn=True).ffn_abs_RL
    torch.testing.assert_close(ffn, ffn_by_hand(model, ids), atol=0, rtol=1e-4)


@torch.no_grad()
def test_a_shared_expert_counts_as_one_more_expert() -> None:
    model = build("qwen2_moe")
    torch.testing.assert_close(record(model, ffn=True).ffn_abs_RL, ffn_by_hand(model, IDS), atol=0, rtol=1e-4)


class SeparateExperts(torch.nn.Module):
    """Two ordinary FFNs; the first four of each five tokens go to the first."""

    def __init__(self, mlp: torch.nn.Module) -> None:
        super().__init__()
        self.experts = torch.nn.ModuleList([mlp, copy.deepcopy(mlp)])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, 1)
        first = torch.arange(len(flat)) % 5 < 4
        output = torch.empty_like(flat)
        output[first], output[~first] = self.experts[0](flat[first]), self.experts[1](flat[~first])
        return output.view_as(hidden)


@torch.no_grad()
def test_experts_that_are_separate_modules_give_the_mean_of_the_batch() -> None:
    model = build("llama")
    dense = model.model.layers[1].mlp
    by_layer = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda mlp, args: by_layer.append(activation_by_hand(mlp, args[0])))
    model(IDS)
    expected = torch.stack([by_layer[0], by_layer[1].mean().expand(24), by_layer[2]]).mean(0).view(2, 12)
    for layer in model.model.layers:
        layer.mlp._forward_pre_hooks.clear()
    model.model.layers[1].mlp = SeparateExperts(dense)
    torch.testing.assert_close(record(model, ffn=True).ffn_abs_RL, expected)


EVERYTHING: dict[str, Any] = {"hidden_layers": [1, 2], "attention_layers": [3], "ffn": True}


def loss_of(recorded: Recorded, logits: torch.Tensor | None = None) -> torch.Tensor:
    """An asymmetric function of all recorded tensors."""
    assert recorded.ffn_abs_RL is not None
    total = 10 * (recorded.ffn_abs_RL * torch.arange(12)).sum()
    total = total + (rows_of(recorded) ** 2 * torch.arange(12)).sum()
    total = total + sum((layer * h.tanh().mean(-1)).sum() for layer, h in recorded.hidden.items())
    return total if logits is None else total + logits.logsumexp(-1).mean()


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_all_earlier_parameters(family: str) -> None:
    model = build(family)
    ffn = record(model, ffn=True).ffn_abs_RL
    assert ffn is not None
    ffn.sum().backward()
    reached = gradients(model)
    assert all(f"model.layers.{i}.self_attn.q_proj.weight" in reached for i in range(LAYERS))
    assert not any(name.startswith(f"model.layers.{LAYERS - 1}.mlp.down_proj") for name in reached)

    rows_of(record(model, attention_layers=[2])).square().sum().backward()
    reached = gradients(model)
    assert {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"} <= set(reached)
    assert reached["model.layers.0.self_attn.v_proj.weight"].abs().max() > 0
    assert "model.layers.1.self_attn.v_proj.weight" not in reached

    record(model, hidden_layers=[2]).hidden[2].square().sum().backward()
    reached = gradients(model)
    assert reached["model.layers.0.self_attn.q_proj.weight"].abs().max() > 0
    assert not any(name.startswith("model.layers.2.") for name in reached)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_gradients_of_ffn_inputs(family: str) -> None:
    model = build(family)
    weights = torch.rand(2, 12)
    (ffn_by_hand(model, IDS) * weights).sum().backward()
    expected = gradients(model)
    ffn = record(model, ffn=True).ffn_abs_RL
    assert ffn is not None
    (ffn * weights).sum().backward()
    found = gradients(model)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert expected.keys() <= found.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected.get(name, gradient * 0), atol=1e-5 * largest, rtol=1e-4)


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward after"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe"])
def test_gradient_checkpointing_gives_the_same_gradients(family: str, inside: bool) -> None:
    model = build(family).train()
    recorder = Recorder(model, Wanted(**EVERYTHING))
    seen = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with recorder.recording() as recorded:
            logits = model(IDS, use_cache=False).logits
            if inside:
                before = copy.copy(recorded), dict(recorded.hidden), dict(recorded.query_key)
                loss_of(recorded, logits).backward()
                assert all(recorded.hidden[layer] is hidden for layer, hidden in before[1].items())
                assert all(recorded.query_key[layer] is query_key for layer, query_key in before[2].items())
                assert recorded.ffn_abs_RL is before[0].ffn_abs_RL
        if not inside:
            loss_of(recorded, logits).backward()
        seen.append((recorded, gradients(model)))
    (plain, expected), (again, found) = seen
    torch.testing.assert_close(again.ffn_abs_RL, plain.ffn_abs_RL)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)

    model(IDS, use_cache=False).logits.sum().backward()  # a pass that is not recorded, repeated in backward as well
    recorder.close()
    found = gradients(model)
    model.gradient_checkpointing_disable()
    model(IDS, use_cache=False).logits.sum().backward()
    torch.testing.assert_close(found, gradients(model))


def test_reentrant_checkpointing_is_refused() -> None:
    model = build("llama").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    for wanted in ({"hidden_layers": [1]}, {"attention_layers": [1]}, {"ffn": True}):
        with pytest.raises(UserError, match=r"^student: reentrant gradient checkpointing .*'use_reentrant': False"):
            record(model, **wanted)
    with torch.no_grad():
        assert record(model.eval(), hidden_layers=[1]).hidden[1].shape == (2, 12, 32)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_bit_equal(family: str, attention: str, packed: bool) -> None:
    model = build(family, attention)
    inputs = {"input_ids": IDS, "position_ids": PACKED} if packed else {"input_ids": IDS}
    expected = model(**inputs, use_cache=False).logits
    recorder = Recorder(model, Wanted(**EVERYTHING))
    outside = model(**inputs, use_cache=False).logits
    with recorder.recording():
        inside = model(**inputs, use_cache=False).logits
    assert torch.equal(outside, expected)
    assert torch.equal(inside, expected)
    assert torch.equal(model(IDS, use_cache=False).logits, expected) != packed


def state_of(model: PreTrainedModel) -> list[Any]:
    return [
        (
            name,
            {key: value for key, value in vars(module).items() if not key.startswith("_forward_")},
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
def test_close_restores_everything(family: str, attention: str) -> None:
    model = build(family, attention)
    before, configuration = state_of(model), model.config.to_dict()
    recorder = Recorder(model, Wanted(**EVERYTHING))
    assert model.config.to_dict() == configuration
    assert model.config._attn_implementation == attention
    assert state_of(model) != before
    with pytest.raises(RuntimeError, match="has a Recorder already"):
        Recorder(model, Wanted(attention_layers=[1]))
    for _ in range(2):
        recorder.close()
        assert state_of(model) == before
    assert model.model.layers[2].self_attn.config is model.config
    assert record(model, **EVERYTHING).hidden.keys() == {1, 2}  # and it can be done again


def test_nothing_is_recorded_or_kept_alive_outside() -> None:
    model = build("llama")
    recorder = Recorder(model, Wanted(**EVERYTHING))
    with recorder.recording() as recorded:
        pass
    model(IDS, use_cache=False)
    assert recorded == Recorded()
    with recorder.recording() as recorded:
        model(IDS, use_cache=False)
    alive = [weakref.ref(t) for t in (recorded.hidden[1], recorded.query_key[3].query_RHLD, recorded.ffn_abs_RL)]
    del recorded
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_one_pass_a_recording() -> None:
    model = build("llama")
    recorder = Recorder(model, Wanted(hidden_layers=[1]))
    with recorder.recording():
        model(IDS)
        with pytest.raises(RuntimeError, match="one forward pass"):
            model(IDS)
    with recorder.recording(), pytest.raises(RuntimeError, match="nested"), recorder.recording():
        pass
    with recorder.recording() as recorded:
        model(IDS)
    assert set(recorded.hidden) == {1}


@torch.no_grad()
def test_two_recorders_do_not_mix() -> None:
    first, second = build("llama"), build("llama", attention="eager")
    other = IDS.flip(0, 1)
    expected = record(first, **EVERYTHING), record(second, {"input_ids": other}, **EVERYTHING)
    recorders = [Recorder(model, Wanted(**EVERYTHING)) for model in (first, second)]
    with recorders[0].recording() as one, recorders[1].recording() as two:
        second(other, use_cache=False)
        first(IDS, use_cache=False)
    for got, wanted in zip((one, two), expected, strict=True):
        assert torch.equal(got.hidden[1], wanted.hidden[1])
        assert torch.equal(got.query_key[3].query_RHLD, wanted.query_key[3].query_RHLD)
        assert torch.equal(got.ffn_abs_RL, wanted.ffn_abs_RL)
    recorders[0].close()
    with recorders[1].recording() as two:
        first(IDS, use_cache=False)
        second(other, use_cache=False)
    assert torch.equal(two.query_key[3].query_RHLD, expected[1].query_key[3].query_RHLD)


@torch.no_grad()
def test_flash_attention_keeps_its_path(request: pytest.FixtureRequest) -> None:
    """transformers' Flash Attention code with SDPA as a stand-in for the kernel, which is looked up by name."""
    stand_in = FlashStandIn(any_dtype=True)
    stand_in()
    request.addfinalizer(stand_in.undo)
    model, reference = build("qwen3"), build("qwen3")
    model.config._attn_implementation = "flash_attention_2"
    flat = {"input_ids": IDS.view(1, -1), "position_ids": PACKED.view(1, -1)}  # see trainer.taps
    for inputs in ({"input_ids": IDS}, flat):
        expected = model(**inputs, use_cache=False).logits
        torch.testing.assert_close(expected, reference(**inputs, use_cache=False).logits, atol=1e-4, rtol=0)
        recorder = Recorder(model, Wanted(**EVERYTHING))
        implementation = model.model.layers[2].self_attn.config._attn_implementation
        assert implementation.startswith("flash")
        assert implementation != "flash_attention_2"
        with recorder.recording() as recorded:
            assert torch.equal(model(**inputs, use_cache=False).logits, expected)
        recorder.close()
        wanted = record(reference, inputs, **EVERYTHING)
        torch.testing.assert_close(recorded.query_key[3].query_RHLD, wanted.query_key[3].query_RHLD, atol=1e-4, rtol=0)
        torch.testing.assert_close(recorded.ffn_abs_RL, wanted.ffn_abs_RL, atol=1e-4, rtol=0)
    assert stand_in.names == ["flash_attention_2"]


def saved_bytes(model: PreTrainedModel, recorder: Recorder | None) -> int:
    """Bytes of distinct storages that autograd keeps after a forward pass."""
    storages: dict[int, int] = {}
    keep = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        keep.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if recorder is None:
            model(IDS, use_cache=False)
        else:
            with recorder.recording():
                model(IDS, use_cache=False)
    return sum(storages.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_autograd_saves_no_more_activations(family: str, autocast: bool) -> None:
    model = build(family)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        before = saved_bytes(model, None)
        recorder = Recorder(model, Wanted(**EVERYTHING))
        extra = saved_bytes(model, recorder) - before
    smallest_ffn_input = 24 * 24 * 2 * (2 if family == "qwen3_moe" else 4)
    assert extra < smallest_ffn_input / 2


def config_error(model: PreTrainedModel, **wanted: Any) -> str:
    before = state_of(model)
    with pytest.raises(UserError) as caught:
        Recorder(model, Wanted(**wanted))
    assert state_of(model) == before
    return str(caught.value)


@pytest.mark.parametrize("wanted", [{"hidden_layers": [1, 4]}, {"attention_layers": [4]}, {"hidden_layers": [0]}])
def test_layers_that_do_not_exist(wanted: dict[str, Any]) -> None:
    message = config_error(build("llama"), **wanted)
    number = 0 if 0 in wanted.get("hidden_layers", []) else 4
    assert message.startswith(f"student layer {number} does not exist: a LlamaForCausalLM of this configuration has 3")


def test_attention_that_is_not_softmax_over_query_and_key() -> None:
    hybrid = AutoModelForCausalLM.from_config(
        Qwen3NextConfig(
            **SHAPE,
            **EXPERTS,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            shared_expert_intermediate_size=24,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
        )
    )
    assert "layer 1: " in config_error(hybrid, attention_layers=[1])
    assert "this layer has linear_attention; choose one of [2]" in config_error(hybrid, attention_layers=[3])
    assert list(record(hybrid, attention_layers=[2]).query_key) == [2]
    latent = AutoModelForCausalLM.from_config(
        DeepseekV3Config(
            **{**SHAPE, "num_key_value_heads": 4},
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
        )
    )
    message = config_error(latent, attention_layers=[3])
    assert "multi-head latent attention (kv_lora_rank 8); remove losses.apc" in message
    sinks = AutoModelForCausalLM.from_config(
        GptOssConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2), attn_implementation="eager"
    )
    with pytest.raises(UserError, match="they depend on s_aux"):
        record(sinks, attention_layers=[1])


@torch.no_grad()
def test_layers_of_another_name_are_found() -> None:
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4)).eval()
    states = gpt2(IDS, output_hidden_states=True).hidden_states
    found = record(gpt2, hidden_layers=[1, 2]).hidden
    assert all(torch.equal(found[layer], states[layer]) for layer in (1, 2))


def test_a_model_with_two_lists_of_layers_is_refused() -> None:
    model = build("llama")
    model.model.predictor = torch.nn.Module()
    model.model.predictor.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(3))
    message = config_error(model, hidden_layers=[1])
    assert "has 2 lists of 3 layers ['model.layers', 'model.predictor.layers'], wanted one; leave out" in message


def test_ffns_that_cannot_be_read() -> None:
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4))
    assert config_error(gpt2, ffn=True).startswith("student: a GPT2Block has no down_proj")
    model = build("llama")
    for layer in model.model.layers:
        layer.mlp = torch.nn.Identity()
    assert config_error(model, ffn=True).startswith("student: a LlamaDecoderLayer has no down_proj")
    eager = build("qwen3_moe", experts_implementation="eager")
    message = config_error(eager, ffn=True)
    assert (
        "Qwen3MoeExperts cannot be read with experts implementation 'eager'; wanted grouped_mm or batched_mm" in message
    )
    changed = build("qwen3_moe")
    recorder = Recorder(changed, Wanted(ffn=True))
    changed.set_experts_implementation("eager")
    changed(IDS)
    with pytest.raises(UserError, match="experts implementation 'eager'"), recorder.recording():
        changed(IDS)
