"""Activation sparsity regulariser (ASR): the mean absolute input of the feed-forward blocks' ``down_proj``.

The L1 penalty makes channels small, rarely exactly zero; channels that stay small are removed later, by pruning on
accumulated activation norm. Trade-off: it needs no teacher and works against every other term, hence the small weight.
The recipe gives both 0.001 and 1e-5 without saying how the penalty is normalised; here it is 1e-3 times the *mean* over
features, tokens and layers, which is independent of width, depth and batch size (a sum is not).

The mean over features and layers is taken where the activations are recorded: ``student/recorder.py``.
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
    """The mean absolute ``down_proj`` input of each token, padding excluded."""

    rows = "attention_mask"

    def title(self) -> str:
        """Title in the model card."""
        return "ASR, sparsity"

    def attach(self, student: "PreTrainedModel", manifest: Manifest, seed: int) -> Wanted:
        """Request the inputs of the feed-forward blocks' ``down_proj``."""
        return Wanted(ffn=True)

    def total(self, recorded: Recorded, batch: Batch) -> torch.Tensor:
        """Sum over the tokens that are not padding."""
        assert recorded.ffn_abs_RL is not None
        if recorded.ffn_abs_RL.shape != batch["attention_mask"].shape:  # flattened: without padding
            return recorded.ffn_abs_RL.sum()
        return recorded.ffn_abs_RL[batch["attention_mask"]].sum()
