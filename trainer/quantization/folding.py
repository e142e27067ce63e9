"""Fold scales of a site's channels into the weights around it: the model computes the same, on another grid.

Readers' columns are multiplied by s, and what produces the input is divided by s: a norm's weights, the rows of v for
o, or the rows of up for down (both pass through the model linearly, channel by channel).
"""

import copy

import torch

from schemas.errors import UserError
from trainer.quantization.sites import Matrix, Site


def spread(values: torch.Tensor, site: Site) -> torch.Tensor:
    """Values of the producer's outputs, [heads * channels] → those of the site's inputs, [I]."""
    shape = (site.heads, site.repeats, site.channels)
    return values.view(site.heads, 1, site.channels).expand(shape).reshape(-1)


def pooled(values_I: torch.Tensor, site: Site) -> torch.Tensor:
    """Means over the query heads that read one value head: [I] → [heads * channels]."""
    return values_I.view(site.heads, site.repeats, site.channels).mean(dim=1).reshape(-1)


@torch.no_grad()
def fold(model: torch.nn.Module, site: Site, scales: torch.Tensor) -> None:
    """Multiply the columns of all that read the input by ``scales`` (float [heads * channels], positive), in place.

    The producer is divided by them; a site without one takes scales of 1 only.

    Raises UserError for a producer whose outputs are not proportional to its weights.
    """
    if isinstance(site.producer, Matrix):
        rows_OI = site.producer.of(model)
        rows_OI.div_(scales.to(rows_OI.dtype)[:, None])
        module = model.get_submodule(site.producer.parameter.rpartition(".")[0])
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias.div_(scales.to(bias.dtype))
    elif site.producer is not None:
        norm = model.get_submodule(site.producer)
        offset, weight = norm_offset(norm, site.producer), norm.get_parameter("weight")
        weight.copy_((weight + offset) / scales.to(weight.dtype) - offset)
    columns_I = spread(scales, site)
    for reading in (*(reader.of(model) for reader in site.readers), *map(model.get_parameter, site.corrected)):
        reading.mul_(columns_I.to(reading.dtype))


def norm_offset(norm: torch.nn.Module, name: str) -> float:
    """0 for a norm that multiplies by w, 1 for one that multiplies by 1 + w, found by running a copy of it.

    Raises UserError for any other, such as one with a bias.
    """
    probe = copy.deepcopy(norm)
    weight = getattr(probe, "weight", None)
    if isinstance(weight, torch.nn.Parameter) and getattr(probe, "bias", None) is None:
        x = torch.linspace(1, 2, weight.numel(), dtype=weight.dtype, device=weight.device)[None]
        for offset in (0.0, 1.0):
            torch.nn.init.constant_(weight, -offset)
            if not probe(x).any():
                return offset
    raise UserError(
        f"{name}: a {type(norm).__name__} is no RMS norm that multiplies by w or 1 + w; export knows no other"
    )
