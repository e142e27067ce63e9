"""Where weights are quantised: the inputs that linear layers of a decoder layer share, and what produces them.

A *site* is one such input. Its readers are quantised together, because one norm (or one producer) can only be scaled
for all of them; what else reads the input (a router, the small projections of linear attention) keeps its 16 bits and
is corrected. Embeddings, output head, norms and convolutions are no readers of a site.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, get_args

import torch

from schemas.errors import UserError
from schemas.train_config import AttentionLayer, FfnLayer, LinearAttentionLayer
from teacher_cache.decoder_layers import find_decoder
from trainer.quantization.grid import GROUP_SIZES, Grid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION, LINEAR_ATTENTION, FFN = map(get_args, (AttentionLayer, LinearAttentionLayer, FfnLayer))
TARGETS = (*ATTENTION, *LINEAR_ATTENTION, *FFN)


class SettingNames(NamedTuple):
    """What users call the settings, for errors."""

    targets: str
    group_size: str


OPTIONS = SettingNames("--target", "--group-size")
KEYS = SettingNames("quantization.targets:", "quantization.group_size:")
NORMS_BEFORE_FFN = ("pre_feedforward_layernorm", "post_attention_layernorm")  # the first one that a layer has


@dataclass(frozen=True)
class Matrix:
    """A linear layer's weight, or one expert's part of a fused one.

    parameter: its name in the model. stored: the weight's name in the model's files. expert, half: of ``gate_up_proj``
    [E, 2F, D], whose halves are gate and up, or of ``down_proj`` [E, D, F].
    """

    parameter: str
    stored: str
    expert: int | None = None
    half: int | None = None

    @property
    def target(self) -> str:
        """The linear layer's name, as ``--target`` has it."""
        return self.stored.split(".")[-2]

    def of(self, model: torch.nn.Module) -> torch.Tensor:
        """A view of the weight, [O, I], without gradient."""
        weight = model.get_parameter(self.parameter).detach()
        weight = weight if self.expert is None else weight[self.expert]
        return weight if self.half is None else weight.chunk(2)[self.half]


def linear(name: str) -> Matrix:
    """The weight of a linear layer."""
    return Matrix(f"{name}.weight", f"{name}.weight")


@dataclass(frozen=True)
class Site:
    """An input of ``heads`` * ``repeats`` * ``channels`` values, which the module ``watched`` is given.

    producer: the norm, or the weight, whose outputs the input is proportional to; None: its scales cannot be folded.
    corrected: names of other parameters that read the input. heads, repeats: of the values that one channel of the
    producer gives rise to; 1 but for attention, where each value head is read by ``repeats`` query heads. expert: only
    the tokens routed to it count, and the input is that of its down projection.
    """

    watched: str
    producer: str | Matrix | None
    readers: tuple[Matrix, ...]
    channels: int
    heads: int = 1
    repeats: int = 1
    corrected: tuple[str, ...] = ()
    expert: int | None = None

    @property
    def inputs(self) -> int:
        """Number of values at the input."""
        return self.heads * self.repeats * self.channels


def find_sites(
    model: "PreTrainedModel", grid: Grid, targets: tuple[str, ...] = TARGETS, names: SettingNames = OPTIONS
) -> list[Site]:
    """The sites whose readers are ``targets``, layer by layer.

    Raises UserError: a target that no layer has, some but not all readers of a site, a layer of an unknown kind, a
    group size that does not divide a site's inputs.
    """
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        raise UserError(f"{names.targets} {unknown[0]}: no such linear layer; choose from {', '.join(TARGETS)}")
    settings = model.config.get_text_config()
    decoder = find_decoder(model, settings.num_hidden_layers, "student")
    (prefix,) = (name for name, module in model.named_modules() if module is decoder.layers)
    found = [site for at, layer in enumerate(decoder.layers) for site in _Layer(layer, f"{prefix}.{at}").sites()]
    sites = [site for site in found if _is_chosen(site, targets, names.targets)]
    if not sites:
        raise UserError(f"{names.targets} {', '.join(targets)}: a {type(model).__name__} has no such linear layer")
    for site in sites:
        if site.inputs % grid.group_size:
            fits = [size for size in reversed(GROUP_SIZES) if not any(each.inputs % size for each in sites)]
            advice = (
                f"use {' or '.join(map(str, fits))}"
                if fits
                else f"no group size does; choose other {names.targets.rstrip(':')}"
            )
            raise UserError(
                f"{names.group_size} {grid.group_size}: does not divide the {site.inputs} inputs of "
                f"{site.readers[0].stored}; {advice}"
            )
    return sites


def _is_chosen(site: Site, targets: tuple[str, ...], setting: str) -> bool:
    names = list(dict.fromkeys(reader.target for reader in site.readers))
    chosen = [name for name in names if name in targets]
    if chosen and len(chosen) < len(names):
        raise UserError(
            f"{setting} {', '.join(chosen)}: {', '.join(names)} read one input and are quantised together; name all of "
            "them or none"
        )
    return bool(chosen)


class _Layer:
    """A decoder layer, and what of it is understood so far."""

    def __init__(self, layer: torch.nn.Module, name: str) -> None:
        self.layer, self.name = layer, name
        self.modules = dict(layer.named_modules())
        self.kind = type(layer).__name__
        self.known: set[str] = set()  # matrices, by parameter

    def sites(self) -> list[Site]:
        """Its sites. Raises UserError if the layer has a matrix, or lacks a module, that no kind of layer explains."""
        mixer = self._linear_attention() if "linear_attn" in self.modules else self._attention()
        found = [*mixer, *self._ffn()]
        strange = [name for name, weight in self.layer.named_parameters() if weight.ndim > 1 and name not in self.known]
        if strange:
            raise self._refusal(f"has {', '.join(part.removesuffix('.weight') for part in strange)}")
        return found

    def _attention(self) -> Iterator[Site]:
        q, k, v, o = (f"self_attn.{part}" for part in ATTENTION)
        head_dim = int(self._module("self_attn").head_dim)  # type: ignore[arg-type]
        inner, outer = self._linear(v), self._linear(o)
        heads = inner.out_features // head_dim
        readers = tuple(map(self._matrix, (q, k, v)))
        yield Site(self._full(q), self._norm("input_layernorm"), readers, inner.in_features)
        repeats = outer.in_features // inner.out_features
        yield Site(self._full(o), self._matrix(v), (self._matrix(o),), head_dim, heads, repeats)

    def _linear_attention(self) -> Iterator[Site]:
        qkv, z, out = (f"linear_attn.{part}" for part in LINEAR_ATTENTION)
        others = tuple(self._other(f"linear_attn.{part}.weight") for part in ("in_proj_a", "in_proj_b"))
        self._other("linear_attn.conv1d.weight")
        inputs, readers = self._linear(qkv).in_features, (self._matrix(qkv), self._matrix(z))
        yield Site(self._full(qkv), self._norm("input_layernorm"), readers, inputs, corrected=others)
        yield Site(self._full(out), None, (self._matrix(out),), self._linear(out).in_features)

    def _ffn(self) -> Iterator[Site]:
        norm = self._norm(next((norm for norm in NORMS_BEFORE_FFN if norm in self.modules), NORMS_BEFORE_FFN[-1]))
        if "mlp.experts" in self.modules:
            yield from self._experts(norm)
            return
        gate, up, down = (f"mlp.{part}" for part in FFN)
        readers = self._matrix(gate), self._matrix(up)
        yield Site(self._full(gate), norm, readers, self._linear(up).in_features)
        yield Site(self._full(down), self._matrix(up), (self._matrix(down),), self._linear(down).in_features)

    def _experts(self, norm: str) -> Iterator[Site]:
        experts, shared = self.modules["mlp.experts"], "mlp.shared_expert"
        shapes = {name: tuple(weight.shape) for name, weight in experts.named_parameters()}
        if set(shapes) != {"gate_up_proj", "down_proj"} or not hasattr(experts, "act_fn"):
            raise self._refusal(f"has experts with {', '.join(shapes)}")
        count, outputs, width = shapes["down_proj"]
        if shapes["gate_up_proj"] != (count, 2 * width, outputs):
            raise self._refusal(f"has experts of shapes {shapes['gate_up_proj']} and {shapes['down_proj']}")
        corrected: tuple[str, ...] = (self._other("mlp.gate.weight"),)
        readers = [self._part(expert, half) for expert in range(count) for half in (0, 1)]
        if shared in self.modules:
            readers += [self._matrix(f"{shared}.{part}") for part in FFN[:2]]
            corrected += (self._other("mlp.shared_expert_gate.weight"),)
        yield Site(self._full("mlp"), norm, tuple(readers), outputs, corrected=corrected)
        if shared in self.modules:
            up, down = self._matrix(f"{shared}.up_proj"), self._matrix(f"{shared}.down_proj")
            yield Site(self._full(f"{shared}.down_proj"), up, (down,), self._linear(f"{shared}.down_proj").in_features)
        for expert in range(count):
            yield Site(
                self._full("mlp.experts"), self._part(expert, 1), (self._part(expert, None),), width, expert=expert
            )

    def _part(self, expert: int, half: int | None) -> Matrix:
        fused = "mlp.experts.down_proj" if half is None else "mlp.experts.gate_up_proj"
        self.known.add(fused)
        part = FFN[2] if half is None else FFN[half]
        return Matrix(self._full(fused), self._full(f"mlp.experts.{expert}.{part}.weight"), expert, half)

    def _matrix(self, part: str) -> Matrix:
        self._linear(part)
        self.known.add(f"{part}.weight")
        return linear(self._full(part))

    def _other(self, parameter: str) -> str:
        self._module(parameter.rpartition(".")[0])
        self.known.add(parameter)
        return self._full(parameter)

    def _norm(self, part: str) -> str:
        self._module(part)
        return self._full(part)

    def _linear(self, part: str) -> torch.nn.Linear:
        module = self._module(part)
        if not isinstance(module, torch.nn.Linear):
            raise self._refusal(f"has {part} of type {type(module).__name__}")
        return module

    def _module(self, part: str) -> torch.nn.Module:
        if part not in self.modules:
            raise self._refusal(f"lacks {part}")
        return self.modules[part]

    def _full(self, part: str) -> str:
        return f"{self.name}.{part}"

    def _refusal(self, what: str) -> UserError:
        return UserError(
            f"{self.name}: a {self.kind} {what}; quantisation knows decoder layers with an RMS norm before attention "
            f"and FFN, and {', '.join(TARGETS)}"
        )
