"""Layer-wise hidden state matching (LHSM): the MSE of normalised hidden states through a learned linear map.

Regression of a student's layer on a teacher's through a learned map is from FitNets (Romero et al. 2015,
arXiv:1412.6550); several layer pairs, each with its own map, from TinyBERT (Jiao et al. 2020, arXiv:1909.10351).

Both sides are normalised *after* the map: an MSE between unnormalised vectors can be lowered by shrinking both, which
teaches nothing. Between normalised vectors it is 2 (1 - r) with r the correlation over features, so only the direction
counts: 0 for equal vectors, about 2 for independent ones, 4 for opposite ones.

Trade-off: EPSILON keeps the gradient finite at a zero vector, at the price of exact scale invariance, which holds only
while the standard deviation over features is well above sqrt(EPSILON) = 1e-3; a side that is exactly zero gives 1. No
gradient leads there (that of a scale-invariant function is orthogonal to its argument), but weight decay may: see
``norms``.

Shape letters: N stored rows, E student width, D teacher width.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch.utils.checkpoint import checkpoint

from schemas.cache_config import layer_number
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.train_config import LhsmConfig
from teacher_cache.signals.hidden.capture import dequantise
from trainer.losses.loss import Batch, FeatureLoss
from trainer.losses.places import places
from trainer.student.forward import flattens
from trainer.student.recorder import Recorded, Wanted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Direction = Literal["teacher_to_student", "student_to_teacher"]
EPSILON = 1e-6  # added to the variance
CHUNK_BYTES = 1 << 28  # of float32 states at one time; more rows are taken in chunks, recomputed in the backward pass
MAPS = "distillation_maps"  # name of the student's submodule that holds the maps while it trains


class Lhsm(FeatureLoss[LhsmConfig]):
    """Hidden states of layer pairs, at the rows where the teacher's are stored.

    The maps train with the student and are left out of the final model.
    """

    rows = "hidden"
    signals = frozenset({"hidden"})
    learns = MAPS

    def title(self) -> str:
        """Title in the model card."""
        return "LHSM, hidden states"

    def attach(self, student: "PreTrainedModel", manifest: Manifest, seed: int) -> Wanted:
        """Add the maps, one per layer pair."""
        config = student.config.get_text_config()
        self.flat = flattens(student)
        self.pairs = layer_pairs(self.settings, manifest, config.num_hidden_layers)
        sizes = (config.hidden_size, manifest.teacher.hidden_size)
        self.maps = HiddenMaps(len(self.pairs), *sizes, self.settings.direction, seed).to(student.device)
        student.add_module(MAPS, self.maps)
        return Wanted(hidden_layers=[layer for _, layer in self.pairs])

    def total(self, recorded: Recorded, batch: Batch) -> torch.Tensor:
        """Sum over the stored rows of the mean over layer pairs, in [0, 4] per row."""
        row_N, column_N, _ = places(batch, "hidden", self.flat)
        student_NE = [recorded.hidden[layer][row_N, column_N] for _, layer in self.pairs]
        stored = [batch[f"hidden_{name}"] for name in ("values", "scales", "outlier_index", "outliers")]
        size = self._chunk_size()
        if len(row_N) <= size:
            return self._total_of(stored, student_NE)
        split = zip(*(part.split(size) for part in (*stored, *student_NE)), strict=True)
        parts = [
            checkpoint(self._total_of, rows[: len(stored)], rows[len(stored) :], use_reentrant=False) for rows in split
        ]
        return torch.stack(parts).sum()

    def _total_of(self, stored: Sequence[torch.Tensor], student_NE: Sequence[torch.Tensor]) -> torch.Tensor:
        """The total over some rows. stored: the arrays that ``dequantise`` takes; student_NE: of each pair."""
        assert self.capture.hidden is not None
        values, scales, outlier_index, outliers = stored
        teacher_NCD = dequantise(values, scales, outlier_index, outliers, self.capture.hidden)
        total = teacher_NCD.new_zeros(())
        for pair, (column, _) in enumerate(self.pairs):
            total = total + self.maps(pair, student_NE[pair], teacher_NCD[:, column]).sum()
        return total / len(self.pairs)

    def _chunk_size(self) -> int:
        """Rows whose float32 states, as stored, mapped and normalised, exist at one time."""
        assert self.capture.hidden is not None
        width, n_layers = sum(self.maps.weights[0].shape), len(self.capture.hidden.layers)
        return max(1, CHUNK_BYTES // (4 * width * (n_layers + 4 * len(self.pairs))))

    def figures(self) -> dict[str, torch.Tensor]:
        """``HiddenMaps.norms`` by name."""
        return {f"lhsm_map_norm_{pair}": norm for pair, norm in enumerate(self.maps.norms())}


def layer_pairs(settings: LhsmConfig, manifest: Manifest, student_layers: int) -> list[tuple[int, int]]:
    """(Index among the stored layers, student layer) of each pair. Raises UserError where a layer is not stored."""
    capture, teacher_layers = manifest.capture.hidden, manifest.teacher.num_layers
    assert capture is not None
    stored = capture.layer_numbers(teacher_layers)
    if settings.pairs is None:
        return [(c, layer_number(n / teacher_layers, student_layers)) for c, n in enumerate(stored)]
    for pair in settings.pairs:
        if pair.teacher not in stored:
            raise UserError(
                f"losses.lhsm.pairs: teacher layer {pair.teacher} is not in the cache, which stores {stored}; choose "
                "one of them"
            )
    return [(stored.index(pair.teacher), pair.student) for pair in settings.pairs]


def layer_norm(hidden_ND: torch.Tensor) -> torch.Tensor:
    """Each row scaled to mean 0 and variance 1, without parameters; computed in float32 (float64 stays float64)."""
    hidden_ND = hidden_ND.to(torch.promote_types(hidden_ND.dtype, torch.float32))
    return torch.nn.functional.layer_norm(hidden_ND, hidden_ND.shape[-1:], eps=EPSILON)


def lhsm_per_row(
    student_NE: torch.Tensor, teacher_ND: torch.Tensor, map_weight: torch.Tensor, direction: Direction
) -> torch.Tensor:
    """Mean over features of the squared difference of the normalised hidden states, [N], in [0, 4].

    teacher_to_student: (LN(LN(teacher) Wᵀ) - LN(student))² with W [E, D], mean over E; the recipe's direction.
    student_to_teacher: (LN(LN(student) Wᵀ) - LN(teacher))² with W [D, E], mean over D; the student must predict all of
    the teacher's vector, where the other direction lets the map select what is easy to match.
    Any float dtypes; computed in float32 (float64 students stay float64).
    """
    student_NE = layer_norm(student_NE)
    teacher_ND = layer_norm(teacher_ND.to(student_NE.dtype))
    map_weight = map_weight.to(student_NE.dtype)
    if direction == "teacher_to_student":
        difference = layer_norm(teacher_ND @ map_weight.T) - student_NE
    else:
        difference = layer_norm(student_NE @ map_weight.T) - teacher_ND
    return difference.square().mean(dim=-1)


class HiddenMaps(torch.nn.Module):
    """One learned linear map without bias per layer pair; ``weights[pair]`` is float32 [out, in].

    A map is initialised as an isometry of the smaller space, which preserves angles between hidden states and gives
    every direction a gradient of the same size. Between equal widths it is the identity: right from the start for a
    student cut from the teacher, and no worse than another rotation otherwise. Between different widths it is a random
    semi-orthogonal matrix, which favours no channels as a truncated identity would.
    """

    def __init__(self, n_pairs: int, student_size: int, teacher_size: int, direction: Direction, seed: int = 0) -> None:
        """The same ``seed`` gives the same maps; torch's global random state is neither read nor changed."""
        super().__init__()
        self.direction = direction
        to_student = direction == "teacher_to_student"
        shape = (student_size, teacher_size) if to_student else (teacher_size, student_size)
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.nn.ParameterList()
        for _ in range(n_pairs):
            weight = torch.eye(*shape)
            if student_size != teacher_size:
                torch.nn.init.orthogonal_(weight, generator=generator)
            self.weights.append(torch.nn.Parameter(weight))

    def forward(self, pair: int, student_NE: torch.Tensor, teacher_ND: torch.Tensor) -> torch.Tensor:
        """``lhsm_per_row`` through the map of ``pair``, [N]."""
        return lhsm_per_row(student_NE, teacher_ND, self.weights[pair], self.direction)

    @torch.no_grad()
    def norms(self) -> torch.Tensor:
        """Each map's Frobenius norm over sqrt(min(D, E)), for logging, [n_pairs]; 1 initially, 1e-3 is too small."""
        return torch.stack([weight.norm() / math.sqrt(min(weight.shape)) for weight in self.weights])
