"""Two losses that the trainer does not have: what adding one takes. Settings, and a class for a line in the table."""

from typing import Any

import torch

from schemas.manifest import Manifest
from schemas.strict import Strict
from schemas.train_config import LossConfig, TrainConfig, WeightSchedule
from trainer.losses.loss import Batch, FeatureLoss, HeadLoss, LossOfChunk, Pair
from trainer.losses.teacher_rows import TeacherRows
from trainer.student.recorder import Recorded, Wanted


class ToyConfig(Strict):
    weight: WeightSchedule = WeightSchedule(start=1.0, end=1.0)


class ToyLosses(LossConfig):
    z_loss: ToyConfig | None = None
    small_states: ToyConfig | None = None


class ToyTrainConfig(TrainConfig):
    losses: ToyLosses = ToyLosses()


class ZLoss(HeadLoss[ToyConfig]):
    """The squared logarithm of the softmax's denominator."""

    def title(self) -> str:
        return "z-loss"

    def of_rows(self, rows: TeacherRows, vocabulary: int) -> LossOfChunk:
        def z_loss_(logits_nV: torch.Tensor, chunk: slice) -> Pair:
            log_z_n = torch.logsumexp(logits_nV, dim=1)
            return log_z_n.square(), logits_nV.softmax(dim=1).mul_(2 * log_z_n[:, None])

        return z_loss_


class SmallStates(FeatureLoss[ToyConfig]):
    """The mean square of the first layer's hidden states, times a learned scale."""

    learns = "toy_scale"

    def title(self) -> str:
        return "small states"

    def attach(self, student: Any, manifest: Manifest, seed: int) -> Wanted:
        self.scale = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.scale.weight)
        student.add_module("toy_scale", self.scale)
        return Wanted(hidden_layers=[1])

    def total(self, recorded: Recorded, batch: Batch) -> torch.Tensor:
        mean_N = recorded.hidden[1][batch["loss_mask"]].square().mean(dim=1)
        return self.scale(mean_N[:, None]).sum()

    def figures(self) -> dict[str, torch.Tensor]:
        return {"toy_scale": self.scale.weight[0, 0]}
