"""The losses on what the student does inside, against what the cache stores of the teacher: which of the student's
layers and heads are compared with which of the teacher's, and at which tokens of a batch.

Every method returns a sum over its rows; the objective divides. The learned maps of LHSM are a submodule of the student
while it trains, so that optimiser, checkpoints and resume take them along; they are no part of the final model.
"""

from typing import TYPE_CHECKING, Any

import torch

from schemas.cache_config import HiddenCapture, layer_number
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.train_config import LossConfig
from teacher_cache.signals.attention import attention_scores
from teacher_cache.signals.hidden import dequantise
from trainer.losses.apc import apc_per_row, most_focused, row_entropies
from trainer.losses.lhsm import HiddenMaps
from trainer.losses.schedule import always_zero
from trainer.recorder import Recorded, Recorder

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
        row_N, column_N, shift_N = self._places(batch, "attention")
        if len(row_N) == 0:
            assert recorded.query_RHLD is not None
            return recorded.query_RHLD.new_zeros(())
        first_N = batch["attention_first_column"] + shift_N
        keys_NHM = batch["attention_keys"] + shift_N[:, None, None]
        log_probs_NHS = attention_rows(recorded, row_N, column_N, first_N)
        n_heads = keys_NHM.shape[1]
        if config.student_heads is None:
            sample_N = batch["attention_sample"]
            entropy_NH = row_entropies(log_probs_NHS.detach())
            heads_NR = most_focused(entropy_NH, sample_N, int(sample_N.max()) + 1, n_heads)[sample_N]
        else:
            heads_NR = torch.tensor(config.student_heads, device=row_N.device).expand(len(row_N), -1)
        chosen_NRS = log_probs_NHS.gather(1, heads_NR[:, :, None].expand(-1, -1, log_probs_NHS.shape[2]))
        return apc_per_row(batch["attention_weights"], keys_NHM, chosen_NRS).sum()

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


def attention_rows(
    recorded: Recorded, row_N: torch.Tensor, column_N: torch.Tensor, first_N: torch.Tensor
) -> torch.Tensor:
    """Log-softmaxed attention rows of the recorded layer, float32 [N, H, L]; -inf at keys that a query cannot see.

    Only these rows are computed, batch row by batch row. ``first_N``: the first column of each query's sample.
    """
    query_RHLD, key_RGLD = recorded.query_RHLD, recorded.key_RGLD
    assert query_RHLD is not None
    assert key_RGLD is not None
    assert recorded.scaling is not None
    place_L = torch.arange(key_RGLD.shape[2], device=row_N.device)
    hidden_NL = (place_L > column_N[:, None]) | (place_L < first_N[:, None])
    parts, order = [], []
    for r in row_N.unique().tolist():
        here = (row_N == r).nonzero().squeeze(1)
        query_HPD = query_RHLD[r][:, column_N[here]]
        scores_HPL = attention_scores(query_HPD, key_RGLD[r], recorded.scaling, recorded.softcap)
        parts.append(scores_HPL.transpose(0, 1).masked_fill(hidden_NL[here, None], -torch.inf).log_softmax(dim=-1))
        order.append(here)
    return torch.cat(parts)[torch.cat(order).argsort()]


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
