"""Training loops of several processes on a cache: one's own with DDP, then DistillationTrainer. Gloo."""

import json
import os
from pathlib import Path
from typing import Any

from support.step_figures import step_figures


def train_as_rank(place: Path, output: Path, job: dict[str, str], losses: dict[str, Any], stop: int) -> None:
    """Write this rank's figures of ``stop`` steps of both loops; the second leaves a checkpoint."""
    os.environ.update(job)
    import torch
    from torch.distributed import destroy_process_group, init_process_group

    torch.set_num_threads(1)
    init_process_group("gloo")
    own = step_figures(lambda: own_loop(place, losses, stop), micro_batches=2)
    theirs = step_figures(lambda: trainer_of(place, output, losses, 2, stop).train(), micro_batches=2)
    found = {"own": own, "theirs": theirs}
    text = json.dumps({loop: {name: each.tolist() for name, each in found[loop].items()} for loop in found})
    (output / f"rank-{job['RANK']}.json").write_text(text)
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


def trainer_of(place: Path, output: Path, losses: dict[str, Any], accumulated: int, stop: int | None = None) -> Any:
    """A DistillationTrainer of micro-batches of two rows, which saves and ends after step ``stop``."""
    from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

    from trainer.api import CacheDataset, DistillationLoss, DistillationTrainer

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == stop:
                control.should_save = control.should_training_stop = True

    student = AutoModelForCausalLM.from_pretrained(place / "models/student")
    loss = DistillationLoss(CacheDataset(place / "runs/demo/cache", losses, rows_per_step=8, steps=20), student)
    shape = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulated}
    settings = {"learning_rate": 3e-4, "lr_scheduler_type": "cosine", "report_to": "none", "logging_steps": 1}
    arguments = TrainingArguments(str(output), use_cpu=True, disable_tqdm=True, save_strategy="no", **shape, **settings)
    return DistillationTrainer(student, arguments, loss=loss, callbacks=[Stop()])
