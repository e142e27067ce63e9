"""The losses on what the student does inside, against what the cache stores of the teacher: which of the student's
layers and heads are compared with which of the teacher's, and at which tokens of a batch.

Every method returns a sum over its rows; the objective divides. The learned maps of LHSM are a submodule of the student
while it trains, so that optimiser, checkpoints and resume take them along; they are no part of the final model.
"""

import itertools
import operator
from typing import TYPE_CHECKING, Any

import torch

from schemas.cache_config import HiddenCapture, layer_number
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.train_config import LossConfig
from teacher_cache.query_key import QueryKey
from teacher_cache.signals.hidden.capture import dequantise
from trainer.losses.apc import apc_of_sequence
from trainer.losses.lhsm import HiddenMaps
from trainer.losses.schedule import always_zero
from trainer.student.recorder import Recorded, Recorder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, torch.Tensor]
MAPS = "distillation_maps"  # name of the submodule


def used(losses: LossConfig) -> LossConfig:
    """``losses`` without those of lhsm, apc and asr whose weight is always 0."""
    parts = {name: getattr(losses, name) for name in ("lhsm", "apc", "asr")}
    off = {name: None for name, part in parts.items() if part is not None and always_zero(part.weight)}
    return losses.model_copy(update=off)


def needs_student_signals(losses: LossConfig) -> bool:
    """Whether any loss looks inside the student."""
    return any(part is not None for part in (losses.lhsm, losses.apc, losses.asr))


class StudentSignals:
    """Records the student and compares it. Installs itself on ``student``; ``close`` takes everything off again."""

    def __init__(self, student: "PreTrainedModel", losses: LossConfig, manifest: Manifest, seed: int) -> None:
        """Raises UserError when student and cache do not have what the losses compare."""
        self.losses = losses
        self._student = student
        config = student.config.get_text_config()
        self._flatten = str(student.config._attn_implementation).startswith("flash")
        self.pairs: list[tuple[int, int]] = []  # column of the stored layers, layer of the student
        if losses.lhsm is not None:
            assert manifest.capture.hidden is not None
            self._capture: HiddenCapture = manifest.capture.hidden
            self.pairs = _layer_pairs(losses, manifest, config.num_hidden_layers)
            sizes = (config.hidden_size, manifest.teacher.hidden_size)
            maps = HiddenMaps(len(self.pairs), *sizes, losses.lhsm.direction, seed)
            student.add_module(MAPS, maps.to(student.device))
        attention_layer = None
        if losses.apc is not None:
            attention_layer = layer_number(losses.apc.student_layer, config.num_hidden_layers)
            _check_heads(losses, manifest, config.num_attention_heads)
        self.recorder = Recorder(
            student,
            hidden_layers=sorted({layer for _, layer in self.pairs}),
            attention_layer=attention_layer,
            ffn=losses.asr is not None,
        )

    @property
    def maps(self) -> HiddenMaps:
        """The learned maps, one for each pair of layers."""
        return getattr(self._student, MAPS)

    def close(self) -> None:
        """Take recorder and maps off the student."""
        self.recorder.close()
        if hasattr(self._student, MAPS):
            delattr(self._student, MAPS)

    def figures(self) -> dict[str, torch.Tensor]:
        """What is logged beside the terms: the norm of each map, 1 at the start."""
        if self.losses.lhsm is None:
            return {}
        return {f"lhsm_map_norm_{pair}": norm for pair, norm in enumerate(self.maps.norms())}

    def lhsm(self, recorded: Recorded, batch: Batch) -> torch.Tensor:
        """Sum over the stored rows of the mean over layer pairs."""
        row_N, column_N, _ = self._places(batch, "hidden")
        teacher_NCD = dequantise(
            batch["hidden_values"],
            batch["hidden_scales"],
            batch["hidden_outlier_index"],
            batch["hidden_outliers"],
            self._capture,
        )
        total = teacher_NCD.new_zeros(())
        for pair, (stored, layer) in enumerate(self.pairs):
            student_NE = recorded.hidden[layer][row_N, column_N]
            total = total + self.maps(pair, student_NE, teacher_NCD[:, stored]).sum()
        return total / len(self.pairs)

    def apc(self, recorded: Recorded, batch: Batch) -> torch.Tensor:
        """Sum over the stored query rows of the mean over heads."""
        config = self.losses.apc
        assert config is not None
        attention = recorded.query_key
        assert attention is not None
        row_N, column_N, shift_N = self._places(batch, "attention")
        if len(row_N) == 0:
            return attention.query_RHLD.new_zeros(())
        first_N = batch["attention_first_column"] + shift_N
        weights_NRM = batch["attention_weights"]
        keys_NRM = batch["attention_keys"] + (shift_N - first_N)[:, None, None]
        keys_NRM = keys_NRM.masked_fill(weights_NRM == 0, 0)  # in the padding they may be another sample's
        position_N = column_N - first_N
        _, counts = batch["attention_sample"].unique_consecutive(return_counts=True)
        sizes = counts.tolist()
        query_NHD = attention.query_RHLD[row_N, :, column_N]
        parts = (part.split(sizes) for part in (query_NHD, position_N, weights_NRM, keys_NRM))
        keys = _sample_keys(attention, row_N, first_N, column_N, sizes)
        return torch.stack(
            [
                apc_of_sequence(attention, query_nHD, key_GSD, position_n, weights_nRM, keys_nRM, config.student_heads)
                for key_GSD, query_nHD, position_n, weights_nRM, keys_nRM in zip(keys, *parts, strict=True)
            ]
        ).sum()

    def asr(self, recorded: Recorded, batch: Batch) -> torch.Tensor:
        """Sum over the real tokens."""
        assert recorded.ffn_abs_RL is not None
        if recorded.ffn_abs_RL.shape != batch["attention_mask"].shape:  # flattened: without padding
            return recorded.ffn_abs_RL.sum()
        return recorded.ffn_abs_RL[batch["attention_mask"]].sum()

    def _places(self, batch: Batch, signal: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Row and column of a signal's N entries in what was recorded, and what was added to their columns."""
        row_N, column_N = batch[f"{signal}_batch_row"], batch[f"{signal}_column"]
        if not (self._flatten and "position_ids" in batch):
            return row_N, column_N, torch.zeros_like(column_N)
        flat_RL = batch["attention_mask"].flatten().cumsum(0).view(batch["attention_mask"].shape) - 1
        flat_N = flat_RL[row_N, column_N]
        return torch.zeros_like(row_N), flat_N, flat_N - column_N


def _sample_keys(
    attention: QueryKey, row_N: torch.Tensor, first_N: torch.Tensor, column_N: torch.Tensor, sizes: list[int]
) -> list[torch.Tensor]:
    """The keys [G, S, D] of each sample, from its first token to its last stored row.

    sizes: how many of the N rows each sample has, one after the other. Cut by ``split``, whose gradient is one array.
    """
    spans = [
        (int(row[0]), int(first[0]), int(column.max()) + 1)
        for row, first, column in zip(*(part.cpu().split(sizes) for part in (row_N, first_N, column_N)), strict=True)
    ]
    rows = attention.key_RGLD.unbind(0)
    keys: list[torch.Tensor] = []
    for r, group in itertools.groupby(spans, key=operator.itemgetter(0)):
        bounds = [0, *(bound for _, first, stop in group for bound in (first, stop)), rows[r].shape[1]]
        pieces = rows[r].split([stop - start for start, stop in itertools.pairwise(bounds)], dim=1)
        keys += pieces[1::2]
    return keys


def _layer_pairs(losses: LossConfig, manifest: Manifest, student_layers: int) -> list[tuple[int, int]]:
    capture, lhsm = manifest.capture.hidden, losses.lhsm
    assert capture is not None
    assert lhsm is not None
    teacher_layers = manifest.teacher.num_layers
    stored = capture.layer_numbers(teacher_layers)
    if lhsm.pairs is None:
        return [(c, layer_number(n / teacher_layers, student_layers)) for c, n in enumerate(stored)]
    for pair in lhsm.pairs:
        if pair.teacher not in stored:
            raise UserError(
                f"losses.lhsm.pairs: teacher layer {pair.teacher} is not in the cache, which stores {stored}; choose "
                "one of them"
            )
    return [(stored.index(pair.teacher), pair.student) for pair in lhsm.pairs]


def _check_heads(losses: LossConfig, manifest: Manifest, student_heads: int) -> None:
    capture, apc = manifest.capture.attention, losses.apc
    assert capture is not None
    assert apc is not None
    stored = capture.n_heads
    chosen: Any = apc.student_heads
    if chosen is not None and (len(chosen) != stored or max(chosen) >= student_heads):
        raise UserError(
            f"losses.apc.student_heads: {chosen}: the cache stores {stored} heads and the student has heads 0 to "
            f"{student_heads - 1}; name one of them for each stored head"
        )
    if stored > student_heads:
        raise UserError(
            f"losses.apc: the cache stores {stored} heads, the student has {student_heads}; leave the loss out or make "
            "a cache with fewer"
        )
