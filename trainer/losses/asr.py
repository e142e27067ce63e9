"""Activation sparsity regulariser (ASR): the mean absolute value of what a feed-forward block feeds its ``down_proj``.

An L1 penalty makes channels small in general, not exactly zero; channels that stay small are what pruning by
accumulated activation norm removes later. Trade-off: it needs no teacher and pulls against every other term, hence the
small weight. The recipe names two, 0.001 and 1e-5, and does not say of what; here it is 1e-3 times the *mean* over
features, rows and layers, which means the same at every width, depth and batch size (a sum would not).

The mean over features and layers is taken where they are read: ``student/recorder.py``.
"""

from typing import TYPE_CHECKING

import torch

from schemas.manifest import Manifest
from schemas.train_config import AsrConfig
from trainer.losses.loss import Batch, FeatureLoss
from trainer.student.recorder import Recorded, Wanted

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Asr(FeatureLoss[AsrConfig]):
    """The mean absolute FFN input of each token, padding left out."""

    rows = "attention_mask"

    def title(self) -> str:
        """What is made small."""
        return "ASR, sparsity"

    def attach(self, student: "PreTrainedModel", manifest: Manifest, seed: int) -> Wanted:
        """Every student whose FFN inputs can be read will do."""
        return Wanted(ffn=True)

    def total(self, recorded: Recorded, batch: Batch) -> torch.Tensor:
        """Sum over the real tokens."""
        assert recorded.ffn_abs_RL is not None
        if recorded.ffn_abs_RL.shape != batch["attention_mask"].shape:  # flattened: without padding
            return recorded.ffn_abs_RL.sum()
        return recorded.ffn_abs_RL[batch["attention_mask"]].sum()
