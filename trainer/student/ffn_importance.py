"""How active each channel of a model's FFNs is: Σ |activation| over tokens, the criterion of activation-based pruning.

Akin to the importance of neurons in Minitron (Muralidharan et al. 2024, arXiv:2407.14679, section 2.2), which takes
the outputs of the first matrix; here it is the inputs of the down projection. Only the sums are kept, in float64.

Shape letters: R rows, L tokens, T = R · L, K experts per token, S = T · K, E experts, F channels.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from trainer.student.ffns import Ffn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BY_EXPERT, BY_TOKEN = "grouped_mm", "batched_mm"  # experts' implementations, by the order of rows in _apply_gate


class ChannelSums:
    """Sums over the tokens that one FFN has seen."""

    def __init__(self, ffn: Ffn, device: torch.device) -> None:
        self.ffn = ffn
        self.abs_EF = torch.zeros(ffn.n_experts, ffn.width, dtype=torch.float64, device=device)
        """Σ |activation| of each channel."""
        self.tokens_E = torch.zeros(ffn.n_experts, dtype=torch.float64, device=device)
        """Tokens that each expert has seen."""

    def add(self, activation_SF: torch.Tensor, counts_ES: torch.Tensor) -> None:
        """Add activations. counts_ES: 1 where a row is one of an expert's and counts, else 0."""
        dtype = torch.promote_types(activation_SF.dtype, torch.float32)
        self.abs_EF += counts_ES.to(dtype) @ activation_SF.abs().to(dtype)
        self.tokens_E += counts_ES.sum(dim=1)


@torch.no_grad()
def channel_sums(
    model: "PreTrainedModel", ffns: Sequence[Ffn], batches: Iterable[Mapping[str, torch.Tensor]]
) -> list[ChannelSums]:
    """Run the model's decoder over batches and return the sums of each FFN, on the model's device.

    batches: ``input_ids`` int64 [R, L], padded on the right, and ``attention_mask`` bool [R, L].
    """
    if any(ffn.is_fused for ffn in ffns):  # grouped products take no float64
        model.set_experts_implementation(BY_TOKEN if model.dtype == torch.float64 else BY_EXPERT)
    device = next(model.parameters()).device
    sums = [ChannelSums(ffn, device) for ffn in ffns]
    counts_1T = torch.empty(1, 0, device=device)
    model.eval()
    with contextlib.ExitStack() as undo:
        for one in sums:
            hook = _watch_experts if one.ffn.is_fused else _watch_linear
            undo.callback(hook(one, lambda: counts_1T))
        for batch in batches:
            counts_1T = batch["attention_mask"].to(device).flatten()[None].float()
            model.base_model(input_ids=batch["input_ids"].to(device), use_cache=False)  # causal: needs no mask
    return sums


def _watch_linear(sums: ChannelSums, counts: Callable[[], torch.Tensor]) -> Callable[[], None]:
    def add(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        sums.add(args[0].flatten(0, -2), counts())

    return getattr(sums.ffn.module, sums.ffn.reader).register_forward_pre_hook(add).remove


def _watch_experts(sums: ChannelSums, counts: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Watch ``_apply_gate`` of fused experts, which gives the activations of all (token, expert) pairs."""
    experts = sums.ffn.module
    apply_gate = experts._apply_gate
    chosen: list[torch.Tensor] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        chosen[:] = [kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]]

    def watched(gate_up: torch.Tensor) -> torch.Tensor:
        activation_SF, experts_TK = apply_gate(gate_up), chosen.pop()
        expert_S = experts_TK.reshape(-1)
        order_S = torch.arange(len(expert_S), device=expert_S.device)
        if experts.config._experts_implementation == BY_EXPERT:
            expert_S, order_S = torch.sort(expert_S)
        is_own_ES = expert_S == torch.arange(sums.ffn.n_experts, device=expert_S.device)[:, None]
        sums.add(activation_SF, is_own_ES * counts()[:, order_S // experts_TK.shape[1]])
        return activation_SF

    handle = experts.register_forward_pre_hook(note, with_kwargs=True)
    experts._apply_gate = watched

    def undo() -> None:
        handle.remove()
        del experts._apply_gate

    return undo
