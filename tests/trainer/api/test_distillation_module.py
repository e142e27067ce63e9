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

STEPS = 4


class Module(DistillationModule):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class SavedAfter(lightning.Callback):
    """Saves after so many micro-batches, and stops."""

    def __init__(self, path: Path, micro_batches: int) -> None:
        self.path, self.micro_batches = path, micro_batches

    def on_train_batch_end(self, trainer: lightning.Trainer, *others: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready == self.micro_batches:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def module_of(place: Path, batch_size: int) -> DistillationModule:
    student = AutoModelForCausalLM.from_pretrained(place / "models/student").train()
    dataset = CacheDataset(place / "runs/demo/cache", {"tla": {}, "lhsm": {}}, rows_per_step=8, steps=STEPS)
    return Module(DistillationLoss(dataset, student), batch_size)


def fit(module: DistillationModule, accumulated: int, resumed: Path | None = None, *callbacks: SavedAfter) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    settings = {"max_epochs": 1, "accumulate_grad_batches": accumulated, "gradient_clip_val": 1e6, **quiet}
    trainer = lightning.Trainer(**settings, enable_model_summary=False, callbacks=[*callbacks])
    trainer.fit(module, ckpt_path=resumed)


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, np.ndarray]:
    """Figures of a run of whole steps."""
    return step_figures(lambda: fit(module_of(place, 8), 1), micro_batches=1)


def test_a_step_may_be_cut_in_any_way(place: Path, whole: dict[str, np.ndarray]) -> None:
    assert len(whole["loss"]) == STEPS
    for batch_size in (1, 4):
        accumulated = 8 // batch_size
        found = step_figures(lambda size=batch_size: fit(module_of(place, size), 8 // size), accumulated)
        assert_same_steps(found, whole)


@pytest.mark.parametrize(("micro_batches", "batch_size"), [(8, 2), (10, 2), (11, 2), (8, 4), (9, 8)])
def test_a_checkpoint_goes_on_after_its_last_whole_step(
    place: Path, whole: dict[str, np.ndarray], tmp_path: Path, micro_batches: int, batch_size: int
) -> None:
    """Saved by a run with four micro-batches of two rows a step, within steps, too; continued in the same or others."""
    saved = tmp_path / "saved.ckpt"
    fit(module_of(place, 2), 4, None, SavedAfter(saved, micro_batches))
    accumulated = 8 // batch_size
    module = module_of(place, batch_size)
    found = step_figures(lambda: fit(module, accumulated, saved), accumulated)
    assert_same_steps(found, {name: values[2:] for name, values in whole.items()})
    assert module.trainer.global_step == STEPS


def test_a_checkpoint_of_other_data_is_refused(place: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.ckpt"
    fit(module_of(place, 8), 1, None, SavedAfter(saved, 1))
    checkpoint = torch.load(saved, weights_only=True)
    torch.save({**checkpoint, "distillation": {**checkpoint["distillation"], "seed": 7}}, saved)
    with pytest.raises(UserError, match="seed is 0, that of the state to continue from is 7"):
        fit(module_of(place, 8), 1, saved)
    del checkpoint["distillation"]
    torch.save(checkpoint, saved)
    with pytest.raises(UserError, match="the checkpoint has no position in a data set"):
        fit(module_of(place, 8), 1, saved)


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
