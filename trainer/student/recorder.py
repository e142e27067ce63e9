"""Record features inside the student during one forward pass: hidden states, q and k, FFN activations.

Everything recorded is part of the autograd graph, and the attention kernel in use stays: attention weights are not
requested, no [heads, L, L] tensor exists. Forward hooks on the decoder layers read the residual stream; q and k come
from ``teacher_cache/query_key.py``. FFN activations (the inputs of ``down_proj``) are read by forward pre-hooks; those
of fused experts by wrapping each instance's ``_apply_gate``.

Trade-off: while a recorder of FFN activations is installed, their mean is computed in every pass that builds a graph,
recorded or not: gradient checkpointing recomputes a layer in backward and requires the same operations as in the
forward pass. Install before a forward pass and close after its backward pass.

Shape letters: R rows, L tokens, D hidden size, F FFN features, T = R · L, K experts per token.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from schemas.errors import UserError
from teacher_cache.decoder_layers import find_decoder
from teacher_cache.query_key import QueryKey, tap_query_key

SOFTMAX_LAYERS = ("full_attention", "sliding_attention")  # of config.layer_types
ROW_ORDERS = ("grouped_mm", "batched_mm")  # experts implementations that call _apply_gate once, for all pairs


@dataclass(frozen=True)
class Wanted:
    """What to record. Layers are numbered from 1 to the number of layers."""

    hidden_layers: Sequence[int] = ()
    attention_layers: Sequence[int] = ()
    ffn: bool = False


def together(wanted: Sequence[Wanted]) -> Wanted:
    """Return the union."""
    return Wanted(
        sorted({layer for one in wanted for layer in one.hidden_layers}),
        sorted({layer for one in wanted for layer in one.attention_layers}),
        any(one.ffn for one in wanted),
    )


@dataclass
class Recorded:
    """The features of one forward pass; empty until the decoder has run."""

    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer n -> [R, L, D]: the residual stream after n decoder layers, before the next norm."""
    query_key: dict[int, QueryKey] = field(default_factory=dict)
    """Attention layer -> its queries and keys."""
    ffn_abs_RL: torch.Tensor | None = None
    """[R, L], float32 (float64 for a float64 model): mean |input of down_proj| over features, then over the token's
    FFNs in a layer (its experts, a shared expert), then over layers."""


class Recorder:
    """Installs hooks on ``model`` and records the forward passes made within ``recording()``.

    model: the student before it is wrapped (DDP, compile), with its attention implementation set; one open recorder
    per model. Raises UserError for a layer that does not exist, an attention layer that is not softmax attention over q
    and k, and unsupported FFNs. A sliding-window layer's q and k cover the whole sequence; the window is not applied.
    """

    def __init__(self, model: PreTrainedModel, wanted: Wanted) -> None:
        config = model.config.get_text_config()
        decoder, layers = find_decoder(model, config.num_hidden_layers, "student")
        for layer in [*wanted.hidden_layers, *wanted.attention_layers]:
            if not 1 <= layer <= len(layers):
                raise UserError(
                    f"student layer {layer} does not exist: a {type(model).__name__} of this configuration has "
                    f"{len(layers)} decoder layers; choose 1 (the first) to {len(layers)} (the last)"
                )
        attentions = {layer: _find_attention(layers, layer, config) for layer in wanted.attention_layers}
        ffns = _find_ffns(layers) if wanted.ffn else []

        self._recorded: Recorded | None = None  # set within recording()
        self._running = False  # True within the decoder's forward; False in backward, where checkpointing reruns layers
        self._used = False
        self._grad = False
        self._ffn_means: dict[int, list[torch.Tensor]] = {}  # layer -> means of its FFNs, [T] or shorter
        self._undo = contextlib.ExitStack()

        if hasattr(decoder, "has_recorder"):
            raise RuntimeError("this model has a Recorder already; close it first")
        for layer, attention in attentions.items():
            self._undo.callback(tap_query_key(attention, self._query_key_keeper(layer), "student"))
        vars(decoder)["has_recorder"] = True
        self._undo.callback(vars(decoder).pop, "has_recorder")
        self._hook(decoder.register_forward_pre_hook(self._start))
        for layer in sorted(set(wanted.hidden_layers)):
            self._hook(layers[layer - 1].register_forward_hook(self._hidden_hook(layer)))
        for layer, module in ffns:
            if isinstance(module.down_proj, torch.nn.Module):
                self._hook(module.down_proj.register_forward_pre_hook(self._ffn_hook(layer)))
            else:
                self._wrap_gate(layer, module)
        self._hook(decoder.register_forward_hook(self._finish))

    @contextlib.contextmanager
    def recording(self) -> Iterator[Recorded]:
        """Record the single forward pass made within the block; nothing is recorded or kept alive outside it."""
        if self._recorded is not None:
            raise RuntimeError("recordings of one Recorder cannot be nested")
        self._recorded, self._used = Recorded(), False
        try:
            yield self._recorded
        finally:
            self._recorded, self._running = None, False
            self._ffn_means = {}

    def close(self) -> None:
        """Remove all hooks from the model. Idempotent."""
        self._undo.close()

    def _hook(self, handle: Any) -> None:
        self._undo.callback(handle.remove)

    def _start(self, decoder: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if self._recorded is None:
            return
        if self._used:
            raise RuntimeError("one recording is for one forward pass; open another recording() for the next")
        self._running, self._used, self._grad = True, True, torch.is_grad_enabled()

    def _finish(self, decoder: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._recorded is None:
            return
        self._running = False
        if self._ffn_means:
            shape = output[0].shape[:2]
            layers = [_mean_of_ffns(means, shape.numel()) for means in self._ffn_means.values()]
            self._recorded.ffn_abs_RL = torch.stack(layers).mean(dim=0).view(shape)

    def _target(self) -> Recorded | None:
        """Return the recording that a hook firing now should write to, or None."""
        if not self._running:
            return None
        if self._grad and not torch.is_grad_enabled():
            raise UserError(
                "student: reentrant gradient checkpointing runs layers without a graph, so losses on their features "
                "have no gradient; pass gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        return self._recorded

    def _hidden_hook(self, layer: int) -> Callable[..., None]:
        def keep(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if (recorded := self._target()) is not None:
                recorded.hidden[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    def _query_key_keeper(self, layer: int) -> Callable[[QueryKey], None]:
        def keep(found: QueryKey) -> None:
            if (recorded := self._target()) is not None:
                recorded.query_key[layer] = found

        return keep

    def _ffn_hook(self, layer: int) -> Callable[..., None]:
        def measure(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            if self._running or torch.is_grad_enabled():  # not only when recorded: see the module docstring
                self._keep_ffn_mean(layer, mean_abs_per_token(args[0]).flatten())

        return measure

    def _keep_ffn_mean(self, layer: int, mean: torch.Tensor) -> None:
        if self._target() is not None:
            self._ffn_means.setdefault(layer, []).append(mean)

    def _wrap_gate(self, layer: int, experts: Any) -> None:
        """Record the output of the fused experts' ``_apply_gate``: the input of the down projection."""
        chosen: list[torch.Tensor] = []
        apply_gate = experts._apply_gate

        def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._running:
                _check_experts(experts)
            experts_TK = kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]
            chosen[:] = [experts_TK] if experts.config._experts_implementation in ROW_ORDERS else []

        def measured_gate(gate_up: torch.Tensor) -> torch.Tensor:
            activation = apply_gate(gate_up)
            experts_TK = chosen.pop() if chosen else None
            if experts_TK is not None and (self._running or torch.is_grad_enabled()):
                pairs = mean_abs_per_token(activation)
                for mean in _in_token_order(pairs, experts_TK, experts).unbind(1):
                    self._keep_ffn_mean(layer, mean)
            return activation

        self._hook(experts.register_forward_pre_hook(note, with_kwargs=True))
        experts._apply_gate = measured_gate
        self._undo.callback(experts.__dict__.pop, "_apply_gate")


def mean_abs_per_token(activation_F: torch.Tensor) -> torch.Tensor:
    """Mean of |x| over the last dimension, [..., F] → [...]; accumulated in float32 (float64 stays float64).

    The gradient is sign(x) / F, and 0 at 0.
    """
    return _MeanAbs.apply(activation_F)


class _MeanAbs(torch.autograd.Function):
    """Autograd would hold the gradient in float32, and four tensors of the activations' shape at one time."""

    @staticmethod
    def forward(ctx: Any, activation_F: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(activation_F)
        return activation_F.abs().mean(dim=-1, dtype=torch.promote_types(activation_F.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *by_means: torch.Tensor) -> torch.Tensor:
        (activation_F,) = ctx.saved_tensors
        slope = (by_means[0] / activation_F.shape[-1]).to(activation_F.dtype)
        return activation_F.sgn().mul_(slope[..., None])


def _find_attention(layers: torch.nn.ModuleList, number: int, config: Any) -> Any:
    """Return the softmax attention module of layer ``number``. Raises UserError that names what it has instead."""
    types = getattr(config, "layer_types", None)
    attention = getattr(layers[number - 1], "self_attn", None)
    if types is not None and types[number - 1] not in SOFTMAX_LAYERS:
        found = types[number - 1]
    elif getattr(config, "kv_lora_rank", None) is not None:
        found = f"multi-head latent attention (kv_lora_rank {config.kv_lora_rank})"
    elif attention is None:
        found = f"a {type(layers[number - 1]).__name__} without self_attn"
    else:
        return attention
    fit = [i + 1 for i, kind in enumerate(types or []) if kind in SOFTMAX_LAYERS]
    raise UserError(
        f"student layer {number}: attention rows need softmax attention, this layer has {found}; "
        + (f"choose one of {fit}" if fit and "kv_lora_rank" not in found else "remove losses.apc")
    )


def _find_ffns(layers: torch.nn.ModuleList) -> list[tuple[int, Any]]:
    """List (layer number, module that owns a ``down_proj``) of every FFN and every module of fused experts."""
    found = []
    for number, layer in enumerate(layers, start=1):
        for module in layer.modules():
            down_proj = getattr(module, "down_proj", None)
            if isinstance(down_proj, torch.nn.Parameter):
                _check_experts(module)
            if isinstance(down_proj, torch.nn.Module | torch.nn.Parameter):
                found.append((number, module))
    if not found:
        raise UserError(
            f"student: a {type(layers[0]).__name__} has no down_proj, so there are no FFN activations for losses.asr; "
            "remove losses.asr or use a student whose FFNs have one (Llama, Qwen, Mistral, Gemma, …)"
        )
    return found


def _check_experts(experts: Any) -> None:
    name = type(experts).__name__
    if not hasattr(experts, "_apply_gate") or not getattr(experts, "has_gate", False):
        raise UserError(f"student: the inputs of down_proj in {name} cannot be read; remove losses.asr")
    implementation = experts.config._experts_implementation
    if implementation not in ROW_ORDERS or experts._is_expert_parallel:
        parallel = " under expert parallelism" if experts._is_expert_parallel else ""
        raise UserError(
            f"student: the inputs of down_proj in {name} cannot be read with experts implementation "
            f"'{implementation}'{parallel}; wanted {' or '.join(ROW_ORDERS)} without it: load the student with "
            "experts_implementation='grouped_mm', or remove losses.asr"
        )


def _in_token_order(values: torch.Tensor, experts_TK: torch.Tensor, experts: Any) -> torch.Tensor:
    """Reorder values of the T · K (token, expert) pairs from the implementation's order to [T, K].

    batched_mm is token-major, grouped_mm sorts by expert (transformers/integrations/moe.py).
    """
    if experts.config._experts_implementation == "grouped_mm":
        order = torch.sort(experts_TK.reshape(-1))[1]
        values = values[torch.argsort(order)]
    return values.view(experts_TK.shape)


def _mean_of_ffns(means: list[torch.Tensor], n_tokens: int) -> torch.Tensor:
    """Mean over one layer's FFNs per token, [T].

    Experts that are separate modules see a subset of the tokens without its indices: then every token gets the mean
    over all (token, expert) pairs of the batch.
    """
    if all(len(mean) == n_tokens for mean in means):
        return torch.stack(means).mean(dim=0)
    return torch.cat(means).mean().expand(n_tokens)
