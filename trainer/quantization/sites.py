"""Where weights are quantised: the inputs that linear layers of a decoder layer share, and what produces them.

A *site* is one such input. Its readers are quantised together, because one norm (or one producer) can only be scaled
for all of them. Embeddings, output head and norms are no readers of a site, so they keep their 16 bits.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from schemas.errors import UserError
from teacher_cache.decoder_layers import find_decoder
from trainer.quantization.grid import Grid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NORMS_BEFORE_FFN = ("pre_feedforward_layernorm", "post_attention_layernorm")  # the first one that a layer has


@dataclass(frozen=True)
class Site:
    """An input of ``heads`` * ``repeats`` * ``channels`` values.

    Names are those of modules in the model. heads, repeats: of the values that one channel of the producer gives rise
    to; 1 but for attention, where each value head is read by ``repeats`` query heads.
    """

    producer: str
    readers: tuple[str, ...]
    channels: int
    heads: int = 1
    repeats: int = 1

    @property
    def inputs(self) -> int:
        """Number of values at the input."""
        return self.heads * self.repeats * self.channels


def find_sites(model: "PreTrainedModel", grid: Grid, targets: tuple[str, ...] = TARGETS) -> list[Site]:
    """The sites whose readers are ``targets``, layer by layer.

    Raises UserError: a target that no layer has, some but not all readers of a site, a layer of an unknown kind, a
    group size that does not divide a site's inputs.
    """
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        raise UserError(f"--target {unknown[0]}: no such linear layer; choose from {', '.join(TARGETS)}")
    settings = model.config.get_text_config()
    decoder = find_decoder(model, settings.num_hidden_layers, "student")
    (prefix,) = (name for name, module in model.named_modules() if module is decoder.layers)
    sites: list[Site] = []
    for number, layer in enumerate(decoder.layers):
        sites += [site for site in _sites_of(layer, f"{prefix}.{number}") if _is_chosen(site, targets)]
    for site in sites:
        if site.inputs % grid.group_size:
            fits = [size for size in (128, 64, 32) if not any(each.inputs % size for each in sites)]
            advice = f"use {' or '.join(map(str, fits))}" if fits else "no group size does; choose other --target"
            raise UserError(
                f"--group-size {grid.group_size}: does not divide the {site.inputs} inputs of {site.readers[0]}; "
                f"{advice}"
            )
    return sites


def _is_chosen(site: Site, targets: tuple[str, ...]) -> bool:
    names = [reader.rpartition(".")[2] for reader in site.readers]
    chosen = [name for name in names if name in targets]
    if chosen and len(chosen) < len(names):
        raise UserError(
            f"--target {', '.join(chosen)}: {', '.join(names)} read one input and are quantised together; name all of "
            "them or none"
        )
    return bool(chosen)


def _sites_of(layer: torch.nn.Module, name: str) -> list[Site]:
    modules = dict(layer.named_modules())
    ffn_norm = next((norm for norm in NORMS_BEFORE_FFN if norm in modules), "")
    attention = [f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj")]
    ffn = [f"mlp.{part}" for part in ("gate_proj", "up_proj", "down_proj")]
    _check_known(layer, name, {*attention, *ffn}, ("input_layernorm", ffn_norm))
    head_dim = modules["self_attn"].head_dim
    v, o, up, down = (modules[part] for part in (*attention[2:], *ffn[1:]))
    heads = v.out_features // head_dim

    def full(part: str) -> str:
        return f"{name}.{part}"

    return [
        Site(full("input_layernorm"), tuple(map(full, attention[:3])), v.in_features),
        Site(full(attention[2]), (full(attention[3]),), head_dim, heads, o.in_features // v.out_features),
        Site(full(ffn_norm), tuple(map(full, ffn[:2])), up.in_features),
        Site(full(ffn[1]), (full(ffn[2]),), down.in_features),
    ]


def _check_known(layer: torch.nn.Module, name: str, wanted: set[str], norms: tuple[str, ...]) -> None:
    """Raise UserError unless the layer has exactly these linear layers, and no other matrices."""
    modules = dict(layer.named_modules())
    kind = type(layer).__name__
    experts = [part for part, parameter in layer.named_parameters() if parameter.ndim > 2 or ".experts." in part]
    if experts:
        raise UserError(
            f"{name}.{experts[0]}: export does not quantise Mixture-of-Experts layers ({kind}) yet; use llm-compressor "
            "for this model"
        )
    found = {part.removesuffix(".weight") for part, parameter in layer.named_parameters() if parameter.ndim > 1}
    missing = sorted({*wanted, *norms} - {*modules})
    if found != wanted or missing:
        what = f"has {', '.join(sorted(found - wanted))}" if found - wanted else f"lacks {', '.join(missing)}"
        raise UserError(
            f"{name}: a {kind} {what}; export knows decoder layers with an RMS norm before attention and FFN, and "
            f"{', '.join(TARGETS)}"
        )
