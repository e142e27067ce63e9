"""Training loops of several processes on a cache: one's own with DDP, DistillationTrainer, Lightning's. Gloo."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.step_figures import step_figures

LIGHTNING = "lightning.ckpt"


def train_as_rank(place: Path, output: Path, job: dict[str, str], losses: dict[str, Any], stop: int) -> None:
    """Write this rank's figures of ``stop`` steps of all three loops; the last two leave checkpoints."""
    os.environ.update(job)
    import torch
    from torch.distributed import destroy_process_group, init_process_group

    torch.set_num_threads(1)
    init_process_group("gloo")
    own = step_figures(lambda: own_loop(place, losses, stop), micro_batches=2)
    theirs = step_figures(lambda: trainer_of(place, output, losses, 2, stop).train(), micro_batches=2)
    lightning = step_figures(lambda: fit_module(place, losses, 2, stop, output / LIGHTNING), micro_batches=2)
    found = {"own": own, "theirs": theirs, "lightning": lightning}
    text = {loop: {name: each.tolist() for name, each in found[loop].items()} for loop in found}
    (output / f"rank-{job['RANK']}.json").write_text(json.dumps(text | {"validation": validated(place)}))
    destroy_process_group()


def own_loop(place: Path, losses: dict[str, Any], stop: int) -> None:
    """A plain loop with DistributedDataParallel: two micro-batches of two rows a step and rank."""
    import torch
    from torch.nn.parallel import DistributedDataParallel
    from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

    from trainer.api import CacheDataset, DistillationLoss

    student = AutoModelForCausalLM.from_pretrained(place / "models/student").train()
    dataset = CacheDataset(place / "runs/demo/cache", losses, rows_per_step=8, steps=20)
    loss = DistillationLoss(dataset, student)
    wrapped = DistributedDataParallel(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, dataset.steps)
    for number, batch in enumerate(dataset.loader(batch_size=2), start=1):
        loss(wrapped, batch).total.backward()
        if number % 2 == 0:
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if number == 2 * stop:
            break


def validated(place: Path) -> dict[str, float]:
    """Figures of the student on a fifth of the samples, over all ranks."""
    from torch.distributed import is_initialized
    from torch.nn.parallel import DistributedDataParallel
    from transformers import AutoModelForCausalLM

    from trainer.api import CacheDataset, DistillationLoss

    student = AutoModelForCausalLM.from_pretrained(place / "models/student")
    held_out = {"rows_per_step": 8, "steps": 1, "validation_fraction": 0.2}
    loss = DistillationLoss(CacheDataset(place / "runs/demo/cache", {"tla": {}}, **held_out), student)
    return loss.validate(DistributedDataParallel(student) if is_initialized() else student)


def trainer_of(
    place: Path,
    output: Path,
    losses: dict[str, Any],
    accumulated: int,
    stop: int | None = None,
    changed: Callable[[Any], Any] = lambda student: student,
) -> Any:
    """A DistillationTrainer of micro-batches of two rows, which saves and ends after step ``stop``.

    ``changed`` makes what is trained of the student.
    """
    from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

    from trainer.api import CacheDataset, DistillationLoss, DistillationTrainer

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == stop:
                control.should_save = control.should_training_stop = True

    student = changed(AutoModelForCausalLM.from_pretrained(place / "models/student"))
    loss = DistillationLoss(CacheDataset(place / "runs/demo/cache", losses, rows_per_step=8, steps=20), student)
    shape = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulated}
    settings = {"learning_rate": 3e-4, "lr_scheduler_type": "cosine", "report_to": "none", "logging_steps": 1}
    arguments = TrainingArguments(str(output), use_cpu=True, disable_tqdm=True, save_strategy="no", **shape, **settings)
    return DistillationTrainer(student, arguments, loss=loss, callbacks=[Stop()])


def fit_module(
    place: Path, losses: dict[str, Any], accumulated: int, stop: int | None = None, checkpoint: Path | None = None
) -> None:
    """Fit a DistillationModule, on two ranks up to step ``stop``, then saved, or on one from that checkpoint on."""
    import lightning
    import torch
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment
    from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

    from trainer.api import CacheDataset, DistillationLoss, DistillationModule

    class Module(DistillationModule):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=3e-4, weight_decay=0.0)
            schedule = get_cosine_schedule_with_warmup(optimizer, 0, self.loss.dataset.steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *others: Any) -> None:
            if trainer.global_step == stop:
                trainer.save_checkpoint(checkpoint)
                trainer.should_stop = True

    student = AutoModelForCausalLM.from_pretrained(place / "models/student").train()
    loss = DistillationLoss(CacheDataset(place / "runs/demo/cache", losses, rows_per_step=8, steps=20), student)
    ranks = 1 if stop is None else 2
    across = {"strategy": "ddp", "devices": ranks, "plugins": [TorchElasticEnvironment()]} if ranks > 1 else {}
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    shape = {"max_epochs": 1, "accumulate_grad_batches": accumulated, "gradient_clip_val": 1.0}
    trainer = lightning.Trainer(accelerator="cpu", callbacks=[Stop()], **quiet, **shape, **across)
    trainer.fit(Module(loss, 2), ckpt_path=None if stop else checkpoint)
