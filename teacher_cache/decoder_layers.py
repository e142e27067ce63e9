"""Finding the decoder layers in a model."""

from typing import Literal, NamedTuple

import torch

from schemas.errors import UserError

MULTIMODAL_PREFIXES = ("visual", "vision", "audio")
ADVICE = {
    "teacher": "leave out capture.hidden and capture.attention for this teacher",
    "student": "leave out loop.compile and the losses on hidden states, attention and FFN inputs for this student",
}


class Decoder(NamedTuple):
    """A model's decoder: the module that owns the layers, and these."""

    module: torch.nn.Module
    layers: torch.nn.ModuleList


def decoder_layers(model: torch.nn.Module, num_layers: int) -> torch.nn.ModuleList:
    """The list of a teacher's decoder layers. Raises UserError as ``find_decoder``."""
    return find_decoder(model, num_layers, "teacher").layers


def find_decoder(model: torch.nn.Module, num_layers: int, whose: Literal["teacher", "student"]) -> Decoder:
    """The text model's decoder. Raises UserError when there is not exactly one candidate."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == num_layers
        and name.rpartition(".")[2] in ("layers", "h", "blocks")
        and not any(part.startswith(MULTIMODAL_PREFIXES) for part in name.split("."))
    }
    if len(found) != 1:
        raise UserError(
            f"{whose}: a {type(model).__name__} has {len(found)} lists of {num_layers} layers {sorted(found)}, wanted "
            f"one; {ADVICE[whose]}"
        )
    ((name, layers),) = found.items()
    return Decoder(model.get_submodule(name.rpartition(".")[0]), layers)
