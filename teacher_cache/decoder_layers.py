"""Finding the decoder layers in a model."""

import torch

from schemas.errors import UserError

MULTIMODAL_PREFIXES = ("visual", "vision", "audio")


def decoder_layers(model: torch.nn.Module, num_layers: int) -> torch.nn.ModuleList:
    """The list of the text model's decoder layers. Raises UserError when there is not exactly one candidate."""
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
            f"capture: a {type(model).__name__} has {len(found)} lists of {num_layers} layers {sorted(found)}, wanted "
            "one; leave out capture.hidden and capture.attention for this teacher"
        )
    return next(iter(found.values()))
