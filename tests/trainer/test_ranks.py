"""Several processes train as one does: the same losses, validations and final model. Gloo.

Most are forked, with the environment that torchrun gives its processes; a run that is stopped and one that fails are
by a real torchrun, in the full tests a whole run, too.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoConfig, AutoModelForCausalLM

from schemas.errors import UserError
from schemas.train_config import TrainConfig
from support.amount import amount
from support.commands import finish
from support.featured import capture_features
from support.logged import read_metrics
from support.ranks import run, torchrun
from trainer.distiller import distill

ROWS_PER_STEP = 8
STEPS = amount(12, full=50)
SHAPES = {  # ranks and how they share the work, with padded and with packed rows
    False: amount(((2, "ddp"), (4, "fsdp")), full=((2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp"))),
    True: amount(((4, "ddp"), (2, "fsdp")), full=((2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp"))),
}
MakeConfig = Callable[..., TrainConfig]


def shape(ranks: int, micro_batch_size: int = 1) -> dict[str, int]:
    """``loop`` settings with which so many ranks consume ROWS_PER_STEP rows a step."""
    accumulation = ROWS_PER_STEP // (ranks * micro_batch_size)
    return {"micro_batch_size": micro_batch_size, "gradient_accumulation": accumulation}


def run_by_torchrun(config: TrainConfig, ranks: int) -> dict[str, Any]:
    done = finish(torchrun(config, ranks))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SAME = {"loss": ("loss", "tla", "cross_entropy", "rows"), "eval_kl": ("eval_kl", "eval_bits_per_byte", "eval_tokens")}


def check_same_weights(found: str, wanted: str) -> None:
    """The same final models, but for what AdamW makes of gradients that are nothing but rounding."""
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(Path(output) / "final").state_dict() for output in (found, wanted)
    )
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=2e-3, atol=2e-4)


def check_same_curve(found: str, wanted: str) -> None:
    """The same metrics at the same steps, within 1e-4."""
    for kind, names in SAME.items():
        ours, theirs = read_metrics(found, kind), read_metrics(wanted, kind)
        assert [record["step"] for record in ours] == [record["step"] for record in theirs]
        for one, two in zip(ours, theirs, strict=True):
            for name in names:
                assert one[name] == pytest.approx(two[name], rel=1e-4), (one["step"], name)


@pytest.fixture(scope="module", params=[False, True], ids=["padded", "packed"])
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {
        "data": {"validation_fraction": 0.2, "packing": request.param, "pack_tokens": 40},
        "losses": {"cross_entropy": {"weight": {"start": 0.5, "end": 0.5}}},
        "loop": {"max_steps": STEPS, "save_every": 6, "validate_every": 6, "keep_checkpoints": 9},
    }


def configured(make_config: MakeConfig, settings: dict[str, Any], output: Path, **loop: Any) -> TrainConfig:
    return make_config(**{**settings, "loop": {**settings["loop"], **loop}, "output": str(output)})


def test_two_and_four_ranks_train_as_one_does(make_config: MakeConfig, settings: dict, tmp_path: Path) -> None:
    """Several ranks take packed rows with ``varlen`` attention, one with SDPA."""
    one = configured(make_config, settings, tmp_path / "one", **shape(1))
    wanted = distill(one)
    settings = settings | {"student": {"attention": "varlen"}} if settings["data"]["packing"] else settings
    for ranks, parallel in SHAPES[settings["data"]["packing"]]:
        config = configured(make_config, settings, tmp_path / f"{ranks}{parallel}", **shape(ranks), parallel=parallel)
        summary = run(config, ranks)
        check_same_curve(config.output, one.output)
        for name in ("ended", "steps", "rows_per_step", "epochs", "tokens"):
            assert summary[name] == wanted[name], name
        check_same_weights(config.output, one.output)


@pytest.mark.parametrize("settings", [True], indirect=True, ids=["packed"])
def test_a_checkpoint_of_two_ranks_goes_on_with_one_and_with_four(
    make_config: MakeConfig, settings: dict, tmp_path: Path
) -> None:
    """Lines of metrics are over three steps, so that one of them spans the stop."""
    loop = {"max_steps": 30, "log_every": 3}
    whole = configured(make_config, settings, tmp_path / "whole", **shape(1), **loop)
    distill(whole)
    stopped = configured(make_config, settings, tmp_path / "stopped", **shape(2), **loop)
    process = torchrun(stopped, 2)
    wait_for_step(stopped.output, 9)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    steps = [int(path.parent.name.split("-")[1]) for path in Path(stopped.output).glob("*/distill_state.json")]
    assert 9 <= max(steps) < 30, "it stopped in between, with a whole checkpoint"
    for ranks in (1, 4):
        shutil.copytree(stopped.output, tmp_path / f"{ranks}")
        config = configured(make_config, settings, tmp_path / f"{ranks}", **shape(ranks), **loop)
        run(config, ranks)
        check_same_curve(config.output, whole.output)


@pytest.mark.parametrize("settings", [True], indirect=True, ids=["packed"])
def test_a_sharded_checkpoint_of_two_ranks_goes_on_with_one_and_with_four(
    make_config: MakeConfig, settings: dict, tmp_path: Path
) -> None:
    """A run that was killed after step 8 has a checkpoint of step 4, in the middle of a line of metrics."""
    loop = {"max_steps": 12, "save_every": 4, "log_every": 3}
    whole = configured(make_config, settings, tmp_path / "whole", **shape(1), **loop)
    distill(whole)
    killed = configured(make_config, settings, tmp_path / "killed", **shape(2), **loop, parallel="fsdp")
    run(killed, 2)
    shutil.rmtree(Path(killed.output) / "checkpoint-12")
    (Path(killed.output) / "checkpoint-8" / "distill_state.json").unlink()
    shutil.rmtree(Path(killed.output) / "final")
    for ranks in (1, 4):
        shutil.copytree(killed.output, tmp_path / f"{ranks}")
        config = configured(make_config, settings, tmp_path / f"{ranks}", **shape(ranks), **loop, parallel="fsdp")
        summary = run(config, ranks)
        assert summary["tokens_this_run"] < summary["tokens"], "it went on, and did not start over"
        check_same_curve(config.output, whole.output)
        check_same_weights(config.output, whole.output)


def wait_for_step(output: str, step: int) -> None:
    for _ in range(1200):
        path = Path(output) / "metrics.jsonl"
        if path.exists() and any(record["step"] >= step for record in read_metrics(output, "loss")):
            return
        time.sleep(0.1)
    raise AssertionError("training did not get that far in two minutes")


def test_an_error_is_one_line_and_no_rank_is_left(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(data={"validation_fraction": 0.999}, output=str(tmp_path / "out"))
    process = torchrun(config, 2)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    errors = [line for line in stderr.splitlines() if line.startswith("error: data.validation_fraction")]
    assert 1 <= len(errors) <= 2


@pytest.fixture(scope="module")
def signals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return capture_features(tmp_path_factory.mktemp("signals")) | {"loop": {"max_steps": 8}}


NO_WEIGHT = {"start": 0.0, "end": 0.0}
INSIDE = {
    "every loss": {"lhsm": {}, "apc": {}, "asr": {}},
    "none behind the head": {"tla": {"weight": NO_WEIGHT}, "lhsm": {}},
}


@pytest.mark.parametrize(
    ("name", "parallel", "bits"),
    [("every loss", "ddp", 3), ("every loss", "fsdp", None), ("none behind the head", "ddp", None)],
)
def test_losses_on_the_students_inside(
    make_config: MakeConfig, signals: dict, tmp_path: Path, name: str, parallel: str, bits: int | None
) -> None:
    settings = {**signals, "losses": INSIDE[name]}
    if bits is not None:
        settings["quantization"] = {"bits": bits, "group_size": 32, "calibration_samples": 4, "check": False}
    one = configured(make_config, settings, tmp_path / "one", **shape(1))
    distill(one)
    two = configured(make_config, settings, tmp_path / "two", **shape(2), parallel=parallel)
    run(two, 2)
    check_same_weights(two.output, one.output)
    ours, theirs = read_metrics(two.output, "loss"), read_metrics(one.output, "loss")
    assert len(ours) == 8
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.keys() == wanted.keys()
        for term in ("loss", "grad_norm", *(loss for loss in ("tla", "lhsm", "apc", "asr") if loss in wanted)):
            assert found[term] == pytest.approx(wanted[term], rel=1e-4), (found["step"], term)


def test_tied_embeddings_and_the_best_weights_of_a_sharded_student(
    make_config: MakeConfig, student_folder: Path, tmp_path: Path
) -> None:
    """Validation is at its best at first, so the final model is read from a checkpoint."""
    torch.manual_seed(2)
    tied = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(student_folder, tie_word_embeddings=True))
    for weight in tied.parameters():
        weight.data.mul_(6 if weight.ndim == 2 else 1)
    student = tmp_path / "tied"
    tied.save_pretrained(student)
    settings = {
        "data": {"validation_fraction": 0.2},
        "losses": {
            "tla": {"weight": {"start": 1.0, "end": 0.0}},
            "cross_entropy": {"weight": {"start": 0.5, "end": 0.5}},
        },
        "student": {"checkpoint": str(student)},
        "optimizer": {"lr": 0.03},
        "loop": {
            "max_steps": 12,
            "keep_checkpoints": 1,
            "validate_every": 2,
            "early_stopping_patience": 2,
            "gradient_checkpointing": True,
        },
    }
    one = configured(make_config, settings, tmp_path / "one", **shape(1))
    two = configured(make_config, settings, tmp_path / "two", **shape(2), parallel="fsdp")
    wanted, summary = distill(one), amount(run, full=run_by_torchrun)(two, 2)
    assert summary["ended"] == "early stopping"
    assert summary["final_step"] == wanted["final_step"] < summary["steps"] == wanted["steps"]
    check_same_curve(two.output, one.output)
    check_same_weights(two.output, one.output)
    best = Path(two.output) / f"checkpoint-{summary['final_step']}"
    stored = FileSystemReader(best / "pytorch_model_fsdp_0").read_metadata().state_dict_metadata
    weights: dict[str, Any] = {name: entry for name, entry in stored.items() if name.startswith("model.")}
    assert len(weights) > 20
    assert all(len(weight.chunks) == 2 for weight in weights.values()), "each rank holds its share only"


LEAVE = """
import atexit, sys, torch
from trainer.student.parallel import leave_together

class Kept:
    def __del__(self):
        print("the interpreter was taken down")

kept = Kept()
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
atexit.register(print, "handlers ran")
print("done")
leave_together(3)
"""


def test_a_rank_leaves_without_taking_the_interpreter_down(tmp_path: Path) -> None:
    """Otherwise threads of gloo may abort it, seldom."""
    command = [sys.executable, "-c", LEAVE, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (3, "done\nhandlers ran\n"), done.stderr


def test_a_sharded_student_needs_torchrun(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"^loop\.parallel: fsdp .* torchrun"):
        distill(make_config(loop={"parallel": "fsdp"}))
