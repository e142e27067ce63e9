"""Changes at resume: the table covers the configuration, and runs behave as it says."""

import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from schemas.errors import UserError
from schemas.train_config import TrainConfig
from support.callbacks import StopAt
from support.logged import losses, read_metrics
from teacher_cache.stop_request import StopRequest
from trainer.distiller import distill
from trainer.run.resume import RULES, page, rule_of


def test_every_key_of_the_configuration_is_in_the_table_once() -> None:
    groups = {name: field.annotation for name, field in TrainConfig.model_fields.items() if name != "output"}
    models = {name: get_args(kind)[0] if get_args(kind) else kind for name, kind in groups.items()}  # X | None
    keys = {f"{group}.{key}" for group, model in models.items() for key in model.model_fields}
    listed = Counter(key for rule in RULES for key in rule.keys)
    assert listed == Counter({"output": 1, **dict.fromkeys(keys, 1)})


def test_the_page_is_generated_from_the_table() -> None:
    found = (Path(__file__).parents[3] / "docs" / "resume.md").read_text()
    assert found == page(), "python -m trainer.run.resume > docs/resume.md"


def test_an_unknown_key_has_no_rule() -> None:
    assert rule_of("rows per step") is None
    assert rule_of("losses.tla.temperature") is None


class Rates(TrainerCallback):
    """Records the learning rate of each step."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        self.by_step[state.global_step + 1] = optimizer.param_groups[0]["lr"]


def interrupted(config: TrainConfig, step: int) -> None:
    stop = StopRequest()
    assert distill(config, stop, [StopAt(step, stop)])["ended"] == "interrupted"


def checkpoints(config: TrainConfig) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in Path(config.output).glob("checkpoint-*"))


def test_log_save_and_validation_intervals_follow_the_configuration(make_config) -> None:
    data, loop = {"validation_fraction": 0.2}, {"max_steps": 12, "keep_checkpoints": 9, "validate_every": 4}
    interrupted(make_config(data=data, loop=loop), 4)
    changed = make_config(data=data, loop={**loop, "save_every": 5, "log_every": 3, "validate_every": 7})
    distill(changed)
    assert checkpoints(changed) == [2, 4, 5, 10, 12]
    assert [record["step"] for record in read_metrics(changed.output, "loss")] == [1, 2, 3, 4, 6, 9, 12]
    assert [record["step"] for record in read_metrics(changed.output, "eval_kl")] == [4, 7, 12]


@pytest.mark.parametrize(
    ("loop", "optimizer"),
    [({"max_steps": 12}, {}), ({}, {"lr": 1e-4}), ({}, {"warmup_steps": 5}), ({"max_steps": 9}, {"lr": 1e-2})],
)
def test_the_rate_follows_the_new_schedule_from_the_first_step_on(make_config, tmp_path, loop, optimizer) -> None:
    """A finished or stopped run resumes at the new schedule's rate at that step."""
    stops = 6 if loop else 4
    first = make_config()
    distill(first) if stops == 6 else interrupted(first, stops)
    rates, wanted = Rates(), Rates()
    distill(make_config(loop=loop, optimizer=optimizer), callbacks=[rates])
    distill(make_config(loop=loop, optimizer=optimizer, output=str(tmp_path / "whole")), callbacks=[wanted])
    steps = range(stops + 1, loop.get("max_steps", 6) + 1)
    assert rates.by_step == {step: wanted.by_step[step] for step in steps}
    assert rates.by_step[stops + 1] > 0


def test_a_change_of_length_is_logged(make_config, caplog: pytest.LogCaptureFixture) -> None:
    distill(make_config())
    with caplog.at_level(logging.INFO, "trainer"):
        assert distill(make_config(loop={"max_steps": 8}))["steps"] == 8
    assert "the run now ends at step 8, before it was 6: from step 6 on the schedules" in caplog.text
    assert "loop.max_steps: 8, was 6 at step 6" in caplog.text
    distill(make_config(loop={"max_steps": 4}))
    assert "step 8 is past the end, step 4: no steps left" in caplog.text


WORSE: dict[str, Any] = {"data": {"validation_fraction": 0.3}, "optimizer": {"lr": 1.0}}  # with each step, soon


def getting_worse(make_config, **loop: Any) -> TrainConfig:
    return make_config(**WORSE, loop={"max_steps": 12, "validate_every": 1, "save_every": 100, **loop})


def final_weights(config: TrainConfig) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(Path(config.output) / "final").lm_head.weight


def test_a_run_that_stopped_early_continues_with_more_patience(make_config) -> None:
    stopped = distill(getting_worse(make_config, early_stopping_patience=2))
    assert stopped["ended"] == "early stopping"
    on = distill(getting_worse(make_config, early_stopping_patience=4))
    assert (on["ended"], on["final_step"]) == ("early stopping", stopped["final_step"])
    assert on["steps"] == stopped["steps"] + 2
    assert distill(getting_worse(make_config, early_stopping_patience=3))["tokens_this_run"] == 0


def test_without_patience_the_last_step_is_final_with_a_warning(make_config, caplog) -> None:
    config = getting_worse(make_config, early_stopping_patience=2)
    best = distill(config)["final_step"]
    kept = final_weights(config)
    with caplog.at_level(logging.INFO, "trainer"):
        summary = distill(getting_worse(make_config))
    assert (summary["ended"], summary["steps"], summary["final_step"]) == ("completed", 12, 12)
    assert f"`final` has the weights of step 12, validation KL {summary['validation']['kl']:.4g}; those of step {best}"
    assert f"those of step {best} had" in caplog.text
    assert not torch.equal(final_weights(config), kept)


def test_a_removed_best_checkpoint_resets_early_stopping(make_config, caplog) -> None:
    """Without patience rotation removes the best checkpoint."""
    interrupted(getting_worse(make_config, keep_checkpoints=1), 5)
    with caplog.at_level(logging.INFO, "trainer"):
        summary = distill(getting_worse(make_config, early_stopping_patience=3))
    assert "had the best validation KL" in caplog.text
    assert "early stopping starts over from here" in caplog.text
    assert summary["final_step"] > 5


def test_a_damaged_best_checkpoint_does_not_become_the_final_model(make_config) -> None:
    config = getting_worse(make_config, early_stopping_patience=3)
    summary = distill(config)
    best = Path(config.output) / f"checkpoint-{summary['final_step']}"
    data = bytearray((best / "model.safetensors").read_bytes())
    data[-9] ^= 1
    (best / "model.safetensors").write_bytes(data)
    again = distill(config)
    assert again["final_step"] > summary["final_step"], "it counted anew from the last checkpoint on"


class Poison(TrainerCallback):
    """Sets a value to NaN at one step."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step and self.what == "gradient":
            model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
        if state.global_step + 1 == self.step and self.what == "loss":
            model.model.norm.weight.data.fill_(float("inf"))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.what == "weight":
            model.model.norm.weight.data[3] = float("nan")


@pytest.mark.parametrize(
    ("what", "step", "said"),
    [
        ("loss", 5, "the loss is nan at step 5; lower optimizer.lr"),
        ("loss", 4, "the loss is nan at step 4; lower optimizer.lr"),
        ("gradient", 5, "the gradient norm is nan at step 5; lower optimizer.lr"),
        ("weight", 4, "the value of a weight is nan at step 4; lower optimizer.lr"),
    ],
)
def test_non_finite_values_end_the_run_and_are_never_saved(make_config, tmp_path, what, step, said) -> None:
    """Also between two lines of metrics; with a lower rate the run resumes from the last good checkpoint."""
    config = make_config(loop={"log_every": 100})
    with pytest.raises(UserError, match=said):
        distill(config, callbacks=[Poison(step, what)])
    saved = 2 if step == 4 else 4
    assert checkpoints(config)[-1] == saved
    assert not (Path(config.output) / "final").exists()
    weights = AutoModelForCausalLM.from_pretrained(Path(config.output) / f"checkpoint-{saved}").parameters()
    assert all(weight.isfinite().all() for weight in weights)
    assert distill(make_config(loop={"log_every": 100}, optimizer={"lr": 1e-3}))["ended"] == "completed"


def test_a_run_resumes_after_its_folders_moved(
    make_config, student_folder: Path, real_cache: Path, tmp_path: Path
) -> None:
    """Student, cache and output are identified by content, not by path."""
    whole = make_config(output=str(tmp_path / "whole"))
    distill(whole)
    interrupted(make_config(), 4)
    shutil.move(tmp_path / "out", tmp_path / "moved" / "out")
    shutil.copytree(student_folder, tmp_path / "moved" / "student")
    shutil.copytree(real_cache, tmp_path / "moved" / "cache")
    there = make_config(
        student={"checkpoint": str(tmp_path / "moved" / "student")},
        data={"cache": str(tmp_path / "moved" / "cache")},
        output=str(tmp_path / "moved" / "out"),
    )
    assert distill(there)["tokens_this_run"] > 0
    assert losses(there.output) == losses(whole.output)


def test_another_student_under_the_same_name_is_refused(make_config, student_folder: Path, tmp_path: Path) -> None:
    student = shutil.copytree(student_folder, tmp_path / "student")
    config = make_config(student={"checkpoint": str(student)})
    interrupted(config, 4)
    model = AutoModelForCausalLM.from_pretrained(student)
    model.lm_head.weight.data[7, 7] += 1e-3
    model.save_pretrained(student)
    with pytest.raises(
        UserError, match=r"checkpoint-4: the student's initial weights had fingerprint .* configuration have"
    ):
        distill(config)


def test_a_teacher_that_moved_is_the_same_teacher(make_config, student_folder: Path, tmp_path: Path) -> None:
    def pruned(teacher: Path) -> TrainConfig:
        return make_config(student={"checkpoint": None, "teacher": str(teacher), "from_layers": [1]})

    here, there = (shutil.copytree(student_folder, tmp_path / name) for name in ("here", "there"))
    interrupted(pruned(here), 4)
    assert distill(pruned(there))["ended"] == "completed"
    model = AutoModelForCausalLM.from_pretrained(there)
    model.lm_head.weight.data[7, 7] += 1e-3
    model.save_pretrained(there)
    with pytest.raises(
        UserError, match=r"student-init: made with teacher = '.*here', but the configuration says '.*th"
    ):
        distill(pruned(there))
