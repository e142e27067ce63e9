"""Finding the feed-forward networks (FFNs) of a decoder and the weights that write and read their channels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from schemas.errors import UserError
from teacher_cache.decoder_layers import find_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GATED = (("gate_proj", "up_proj"), "down_proj")
FUSED = (("gate_up_proj",), "down_proj")  # of experts: parameters [E, 2F, D] and [E, D, F]
LAYOUTS: dict[str, tuple[tuple[str, ...], str]] = {  # by model_type: what writes the channels, what reads them
    "gemma": GATED,
    "gemma2": GATED,
    "gemma3_text": GATED,
    "llama": GATED,
    "mistral": GATED,
    "olmo2": GATED,
    "phi": (("fc1",), "fc2"),
    "qwen2": GATED,
    "qwen2_moe": GATED,
    "qwen3": GATED,
    "qwen3_5_moe_text": GATED,
    "qwen3_5_text": GATED,
    "qwen3_moe": GATED,
    "qwen3_next": GATED,
    "smollm3": GATED,
    "starcoder2": (("c_fc",), "c_proj"),
}
"""Architectures whose channels do not affect one another, so that removing one is setting its activation to zero."""


@dataclass(frozen=True)
class Ffn:
    """One FFN, or the experts of one layer that are stored as 3-D tensors."""

    layer: int  # from 1
    module: Any
    width_key: str  # of config.json
    writers: tuple[str, ...]  # linear layers or parameters whose output rows are channels
    reader: str  # the one whose input columns are channels

    @property
    def is_fused(self) -> bool:
        """Whether the weights are those of several experts."""
        return isinstance(getattr(self.module, self.reader), torch.nn.Parameter)

    @property
    def n_experts(self) -> int:
        """Number of experts; 1 of an FFN that every token takes."""
        return len(getattr(self.module, self.reader)) if self.is_fused else 1

    @property
    def width(self) -> int:
        """Number of channels."""
        reader = getattr(self.module, self.reader)
        return int(reader.shape[-1] if self.is_fused else reader.in_features)


def find_ffns(model: "PreTrainedModel") -> list[Ffn]:
    """All FFNs, layer by layer. Raises UserError that names an architecture whose channels cannot be removed."""
    config = model.config.get_text_config()
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        raise UserError(
            f"student.ffn: the FFNs of a {type(model).__name__} ({config.model_type}) cannot be pruned; wanted one of "
            f"{', '.join(LAYOUTS)}; leave out student.ffn"
        )
    found = []
    for number, layer in enumerate(find_decoder(model, config.num_hidden_layers, "student").layers, start=1):
        here = [
            ffn
            for name, module in layer.named_modules()
            if (ffn := _ffn_of(number, name.rpartition(".")[2], module, layout)) is not None
        ]
        wrong = {ffn.width_key: ffn.width for ffn in here if getattr(config, ffn.width_key, None) != ffn.width}
        if not here or wrong:
            raise UserError(
                f"student.ffn: layer {number} of a {type(model).__name__} has "
                + (f"FFNs of other widths than its configuration says ({wrong})" if wrong else "no FFN that is known")
                + "; leave out student.ffn"
            )
        found += here
    return found


def _ffn_of(number: int, name: str, module: Any, layout: tuple[tuple[str, ...], str]) -> Ffn | None:
    writers, reader = layout
    if all(isinstance(getattr(module, part, None), torch.nn.Linear) for part in (*writers, reader)):
        key = "shared_expert_intermediate_size" if name == "shared_expert" else "intermediate_size"
        return Ffn(number, module, key, writers, reader)
    writers, reader = FUSED
    if all(isinstance(getattr(module, part, None), torch.nn.Parameter) for part in (*writers, reader)):
        return Ffn(number, module, "moe_intermediate_size", writers, reader)
    return None
