"""The Lightning module: the same gradients however a step is cut."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.errors import UserError
from support.step_figures import assert_same_steps, step_figures
from trainer.api import CacheDataset, DistillationLoss, DistillationModule

STEPS = 3


class Module(DistillationModule):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def module_of(place: Path, batch_size: int) -> DistillationModule:
    student = AutoModelForCausalLM.from_pretrained(place / "models/student").train()
    dataset = CacheDataset(place / "runs/demo/cache", {"tla": {}, "lhsm": {}}, rows_per_step=8, steps=STEPS)
    return Module(DistillationLoss(dataset, student), batch_size)


def fit(module: DistillationModule, accumulated: int) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    settings = {"max_epochs": 1, "accumulate_grad_batches": accumulated, "gradient_clip_val": 1e6, **quiet}
    trainer = lightning.Trainer(**settings, enable_model_summary=False)
    trainer.fit(module)
    return trainer


def test_a_step_may_be_cut_in_any_way(place: Path) -> None:
    whole = step_figures(lambda: fit(module_of(place, 8), 1), micro_batches=1)
    assert len(whole["loss"]) == STEPS
    for batch_size in (1, 4):
        accumulated = 8 // batch_size
        found = step_figures(lambda size=batch_size: fit(module_of(place, size), 8 // size), accumulated)
        assert_same_steps(found, whole)


def test_what_is_logged_is_of_the_size_of_a_step(place: Path) -> None:
    logged = []
    module = module_of(place, 2)
    module.log = lambda name, value, **_: logged.append((name, float(value)))
    found = step_figures(lambda: fit(module, 4), micro_batches=4)
    losses = np.array([value for name, value in logged if name == "loss"]).reshape(STEPS, 4).mean(axis=1)
    np.testing.assert_allclose(losses, found["loss"], rtol=1e-6)
    assert {name for name, _ in logged} == {"loss", "tla", "lhsm"}


def test_what_does_not_make_up_a_step_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match=r"2 rows × 3 accumulate_grad_batches × 1 ranks are 6, .* rows_per_step is 8"):
        fit(module_of(place, 2), 3)
    dataset = CacheDataset(place / "runs/demo/cache", rows_per_step=8, steps=STEPS)
    with pytest.raises(UserError, match="made without a student"):
        Module(DistillationLoss(dataset), 2)
