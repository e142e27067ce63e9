"""DistillationTrainer and loops of one's own on several ranks, exact resume on another number of them, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from schemas.errors import UserError
from schemas.train_config import LossConfig
from support.commands import fork_server
from support.own_loops import LIGHTNING, fit_module, train_as_rank, trainer_of, validated
from support.ranks import free_port
from support.step_figures import assert_same_steps, step_figures
from trainer.api import CacheDataset, DistillationLoss, DistillationTrainer

LOSSES = {"tla": {}, "lhsm": {}}
STOP = 8
Train = Callable[[LossConfig], dict[str, np.ndarray]]


def test_two_ranks_and_then_one_are_one_run(place: Path, train_student: Train, tmp_path: Path) -> None:
    wanted = train_student(LossConfig.model_validate(LOSSES))
    first = {name: values[:STOP] for name, values in wanted.items()}
    port = str(free_port())
    jobs = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        for rank in range(2)
    ]
    processes = [fork_server().Process(target=train_as_rank, args=(place, tmp_path, job, LOSSES, STOP)) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for loop in ("own", "theirs", "lightning"):
        losses = sum(np.array(rank[loop]["loss"]) for rank in ranks)
        assert_same_steps({"loss": losses, "grad_norm": np.array(ranks[0][loop]["grad_norm"])}, first)
    wanted_figures = validated(place)
    for rank in ranks:
        assert rank["validation"] == pytest.approx(wanted_figures, rel=1e-6)

    trainer = trainer_of(place, tmp_path, LOSSES, accumulated=4)
    found = step_figures(lambda: trainer.train(resume_from_checkpoint=True), micro_batches=4)
    assert_same_steps(found, {name: values[STOP:] for name, values in wanted.items()})
    lightning = step_figures(lambda: fit_module(place, LOSSES, 4, checkpoint=tmp_path / LIGHTNING), micro_batches=4)
    assert_same_steps(lightning, found)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == len(wanted["loss"])  # those of before are in the checkpoint
    for line, loss in zip(lines, wanted["loss"], strict=True):
        assert line["loss"] == pytest.approx(loss, rel=1e-5)
        progress = (line["step"] - 1) / 20
        assert (1 - 0.7 * progress) * line["tla"] + 0.8 * line["lhsm"] == pytest.approx(loss, rel=1e-5)


def test_an_adapter_goes_on_with_the_maps_that_losses_learn(place: Path, tmp_path: Path) -> None:
    def trainer_with_adapter(stop: int | None = None) -> DistillationTrainer:
        torch.manual_seed(0)  # of PEFT's initial weights
        adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return trainer_of(place, tmp_path, LOSSES, 4, stop, lambda student: get_peft_model(student, adapter))

    whole = step_figures(trainer_with_adapter().train, micro_batches=4)
    step_figures(trainer_with_adapter(STOP).train, micro_batches=4)
    rest = trainer_with_adapter()
    found = step_figures(lambda: rest.train(resume_from_checkpoint=True), micro_batches=4)
    assert_same_steps(found, {name: values[STOP:] for name, values in whole.items()})
    saved = tmp_path / f"checkpoint-{STOP}" / "distillation_maps.safetensors"
    assert all(name.startswith("distillation_maps.") for name in load_file(saved))
    saved.unlink()
    with pytest.raises(UserError, match=r"distillation_maps.safetensors: not found; the maps"):
        trainer_with_adapter().train(resume_from_checkpoint=True)
    rest.distillation.detach()
    rest.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / saved.name).exists()


def test_an_adapter_whose_maps_would_be_lost_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = property(lambda trainer: "callback_handler" in vars(trainer), lambda *_: None)  # FSDP itself is not set up
    monkeypatch.setattr(Trainer, "is_fsdp_enabled", made, raising=False)
    adapter = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(UserError, match=r"an adapter with FSDP would be saved without the maps that losses.lhsm learn"):
        trainer_of(place, tmp_path, LOSSES, 4, changed=lambda student: get_peft_model(student, adapter))
    trainer_of(place, tmp_path, {"tla": {}}, 4, changed=lambda student: get_peft_model(student, adapter))


def test_it_validates_on_what_is_held_out(place: Path, tmp_path: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(place / "models/student")
    data = CacheDataset(place / "runs/demo/cache", {"tla": {}}, rows_per_step=8, steps=9, validation_fraction=0.2)
    loss = DistillationLoss(data, student)
    shape = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 3e-3}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_kl", "greater_is_better": False}
    every = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 3, "report_to": "none"}
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, **shape, **best, **every)
    trainer = DistillationTrainer(student, arguments, loss=loss)
    before = loss.validate(student)
    trainer.train()
    lines = {line["step"]: line for line in trainer.state.log_history if "eval_kl" in line}
    assert sorted(lines) == [3, 6, 9]
    kls = {step: line["eval_kl"] for step, line in lines.items()}
    assert min(kls.values()) < before["kl"]
    assert trainer.state.best_metric == min(kls.values())
    after = trainer.evaluate()
    assert after["eval_kl"] == pytest.approx(min(kls.values()), rel=1e-6)
    assert after["eval_tokens"] == before["tokens"]


def test_learned_maps_have_no_weight_decay(place: Path, tmp_path: Path) -> None:
    trainer = trainer_of(place, tmp_path, LOSSES, accumulated=4)
    names = trainer.get_decay_parameter_names(trainer.model)
    assert "lm_head.weight" in names
    assert not [name for name in names if "maps" in name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"gradient_accumulation_steps": 2},
            r"2 rows per device × 2 accumulated × 1 ranks are 4, .* rows_per_step is 8; make them equal",
        ),
        ({"eval_strategy": "steps"}, r"eval_strategy is set, and nothing is held out; give the CacheDataset"),
        ({"max_steps": 7}, r"max_steps is 7, the data set has 20; leave it out"),
    ],
)
def test_arguments_that_contradict_the_data_set(
    place: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    student = AutoModelForCausalLM.from_pretrained(place / "models/student")
    loss = DistillationLoss(CacheDataset(place / "runs/demo/cache", rows_per_step=8, steps=20), student)
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "report_to": "none", **changes}
    with pytest.raises(UserError, match=message):
        DistillationTrainer(student, TrainingArguments(str(tmp_path), **settings), loss=loss)


def test_what_it_does_not_do_is_refused(place: Path, tmp_path: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(place / "models/student")
    dataset = CacheDataset(place / "runs/demo/cache", rows_per_step=8, steps=20)
    loss = DistillationLoss(dataset, student)
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=8, report_to="none")
    with pytest.raises(UserError, match=r"eval_dataset: leave it out; validation_fraction or validation_cache"):
        DistillationTrainer(student, arguments, loss=loss, eval_dataset=dataset)
    dataset.seek(8)
    with pytest.raises(UserError, match=r"continue with resume_from_checkpoint"):
        DistillationTrainer(student, arguments, loss=loss)
