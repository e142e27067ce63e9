"""Whole runs of students that are adapters: with every loss, packed, sharded, killed, and continued."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from schemas.errors import UserError
from schemas.train_config import TrainConfig
from support.callbacks import StopAt
from support.commands import Forked, finish, kill_group
from support.featured import capture_features
from support.logged import losses, read_metrics
from support.ranks import run
from teacher_cache.stop_request import StopRequest
from trainer.distiller import distill
from trainer.evaluate import evaluate_folder

Make = Callable[..., TrainConfig]
INSIDE = {"lhsm": {}, "apc": {}, "asr": {}}


@pytest.fixture
def make(make_config: Make, student_folder: Path, tmp_path: Path) -> Make:
    """``make(name, {adapter}, …)``: a run in a folder of its own."""

    def configured(name: str, adapter: Any = None, student: Any = None, **changes: Any) -> TrainConfig:
        settings = {"checkpoint": str(student_folder), "adapter": {"r": 4} | (adapter or {})} | (student or {})
        return make_config(student=settings, output=str(tmp_path / name), **changes)

    return configured


@pytest.fixture(scope="module")
def signals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return capture_features(tmp_path_factory.mktemp("signals")) | {"losses": INSIDE}


def adapter_in(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(Path(config.output) / "final" / "adapter_model.safetensors")


def check_same(one: TrainConfig, two: TrainConfig) -> None:
    """The same losses and adapters, bit for bit."""
    assert losses(one.output) == losses(two.output)
    ours, theirs = adapter_in(one), adapter_in(two)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_an_adapter_learns_and_is_written_without_its_base(make: Make, student_folder: Path, real_cache: Path) -> None:
    config = make(
        "out", {"merge": True}, data={"validation_fraction": 0.2}, loop={"max_steps": 60, "validate_every": 20}
    )
    summary = distill(config)
    output = Path(config.output)
    before = evaluate_folder(str(student_folder), str(real_cache), validation_fraction=0.2)
    kl = [record["eval_kl"] for record in read_metrics(output, "eval_kl")]
    assert kl[-1] < 0.9 * before["kl"], (before["kl"], kl)
    merged = evaluate_folder(str(output / "final-merged"), str(real_cache), validation_fraction=0.2)
    assert merged["kl"] == pytest.approx(summary["validation"]["kl"], rel=1e-5)

    weights = adapter_in(config)
    assert len(weights) == 2 * 2 * 7, "two matrices of two layers' seven linear layers"
    assert all(weight.dtype == torch.float32 and 4 in weight.shape for weight in weights.values())
    assert {path.name for path in (output / "final").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "distill_adapter.json",
    }  # fmt: skip
    trained = load_file(output / "checkpoint-60" / "trained.safetensors")
    assert len(trained) == len(weights), "a checkpoint has no frozen weights"
    base = AutoModelForCausalLM.from_pretrained(student_folder).state_dict()
    state = torch.load(output / "checkpoint-60" / "optimizer.pt", weights_only=True)["state"]
    assert sum(len(one["exp_avg"]) > 0 for one in state.values()) == len(weights)
    merged_weights = AutoModelForCausalLM.from_pretrained(output / "final-merged").state_dict()
    same = {name for name, weight in base.items() if torch.equal(weight, merged_weights[name])}
    assert all(("_proj" in name) != (name in same) for name in base), "only what has an adapter has changed"
    card = (output / "final" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "LoRA adapter of rank 4" in card
    assert "library_name: transformers" in (output / "final-merged" / "README.md").read_text()


def test_a_finished_run_writes_a_lost_adapter_again(make: Make) -> None:
    config = make("out")
    distill(config)
    wanted = adapter_in(config)
    shutil.rmtree(Path(config.output) / "final")
    distill(config)
    assert all(torch.equal(adapter_in(config)[name], weight) for name, weight in wanted.items())


CHANGES = {
    "dropout, packed": ({"dropout": 0.2}, {"data": {"packing": True, "pack_tokens": 40}}),
    "4 bits, validated": ({"base_bits": 4}, {"data": {"validation_fraction": 0.2}, "loop": {"validate_every": 2}}),
    "bfloat16, checkpointed": (
        {"targets": ["q_proj", "v_proj"], "rslora": True},
        {"student": {"dtype": "bfloat16"}, "loop": {"gradient_checkpointing": True}},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_stopped_run_ends_like_one_that_was_not(make: Make, name: str) -> None:
    adapter, changes = CHANGES[name]
    whole, parts = (make(folder, adapter, **changes) for folder in ("whole", "parts"))
    distill(whole)
    stop = StopRequest()
    assert distill(parts, stop, [StopAt(3, stop)])["ended"] == "interrupted"
    distill(parts)
    check_same(parts, whole)


def test_learned_maps_and_recorded_features_go_on_after_a_stop(
    make_config: Make, signals: dict[str, Any], tmp_path: Path
) -> None:
    student = signals["student"] | {"adapter": {"r": 4}}
    changes = {**signals, "student": student, "loop": {"gradient_checkpointing": True, "save_every": 100}}
    whole, parts = (make_config(**changes, output=str(tmp_path / name)) for name in ("whole", "parts"))
    distill(whole)
    stop = StopRequest()
    distill(parts, stop, [StopAt(3, stop)])
    stored = load_file(tmp_path / "parts" / "checkpoint-3" / "trained.safetensors")
    assert any("lora" not in name for name in stored), "the maps of lhsm are in the checkpoint"
    distill(parts)
    check_same(parts, whole)
    for line in read_metrics(whole.output, "loss"):
        assert all(np.isfinite(line[term]) and line[term] > 0 for term in ("tla", "lhsm", "apc", "asr"))
    assert all(".lora_" in name for name in adapter_in(whole)), "the maps are not in the final adapter"


@pytest.mark.parametrize(("parallel", "bits"), [("ddp", None), ("ddp", 4), ("fsdp", None)])
def test_two_ranks_train_as_one_does(
    make_config: Make, signals: dict[str, Any], tmp_path: Path, parallel: str, bits: Any
) -> None:
    """With every loss; sharded, stopped in between by a lost checkpoint."""
    student = signals["student"] | {"adapter": {"r": 4, "base_bits": bits}}
    changes = {**signals, "student": student}
    one = make_config(**changes, loop={"gradient_accumulation": 4, "micro_batch_size": 1}, output=str(tmp_path / "1"))
    loop = {"gradient_accumulation": 2, "micro_batch_size": 1, "parallel": parallel}
    two = make_config(**changes, loop=loop, output=str(tmp_path / "2"))
    distill(one)
    run(two, 2)
    np.testing.assert_allclose(losses(two.output), losses(one.output), rtol=1e-4)
    wanted = adapter_in(one)
    for name, weight in adapter_in(two).items():
        torch.testing.assert_close(weight, wanted[name], rtol=2e-3, atol=2e-4)
    if parallel == "fsdp":
        stored = FileSystemReader(tmp_path / "2/checkpoint-6/pytorch_model_fsdp_0").read_metadata()
        names = [name for name in stored.state_dict_metadata if "lora" in name]
        assert len(names) == len(wanted)
        assert not any("norm" in name or "base_layer" in name for name in stored.state_dict_metadata)
    shutil.rmtree(tmp_path / "2/checkpoint-6")
    shutil.rmtree(tmp_path / "2/final")
    ended = adapter_in(one), losses(one.output)
    assert run(two, 2)["tokens_this_run"] > 0
    np.testing.assert_allclose(losses(two.output), ended[1], rtol=1e-4)
    for name, weight in adapter_in(two).items():
        torch.testing.assert_close(weight, ended[0][name], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("bits", [None, 4])
def test_the_best_steps_adapter_is_written_and_merged(
    make_config: Make, signals: dict[str, Any], tmp_path: Path, bits: Any
) -> None:
    """The student is its teacher, and learns the texts instead: it is farther from the teacher with every step."""
    off, on = ({"weight": {"start": weight, "end": weight}} for weight in (0, 1))
    config = make_config(
        data={**signals["data"], "validation_fraction": 0.2},
        student=signals["student"] | {"adapter": {"r": 4, "merge": True, "base_bits": bits}},
        losses={"tla": off, "cross_entropy": on},
        optimizer={"lr": 3e-3},
        loop={"max_steps": 40, "validate_every": 1, "save_every": 100, "early_stopping_patience": 3},
        output=str(tmp_path / "out"),
    )
    summary = distill(config)
    assert (summary["ended"], summary["final_step"], summary["steps"]) == ("early stopping", 1, 4)
    url = signals["data"]["cache"]
    merged = evaluate_folder(str(tmp_path / "out" / "final-merged"), url, validation_fraction=0.2)
    assert merged["kl"] == pytest.approx(summary["validation"]["kl"], rel=1e-4)


def test_a_killed_run_ends_like_one_that_was_not(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process: sums depend on it
    loop = {"max_steps": 60, "save_every": 3}
    whole, killed = (make(name, {"dropout": 0.1}, loop=loop) for name in ("whole", "killed"))
    distill(whole)
    path = tmp_path / "killed.json"
    path.write_text(killed.model_dump_json())
    process = Forked("train-student", "run", path)
    deadline = time.monotonic() + 120
    while not list(Path(killed.output).glob("checkpoint-*/checkpoint.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill_group(process)
    assert not (Path(killed.output) / "final").exists(), "it was killed before its end"
    done = finish(Forked("train-student", "run", path, "--json"))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert 0 < summary["tokens_this_run"] < summary["tokens"], "it went on, and did not start over"
    check_same(killed, whole)


def test_what_an_adapter_cannot_be_resumed_with(make: Make, student_folder: Path, tmp_path: Path) -> None:
    distill(make("out"))
    for adapter in ({"r": 8}, {"base_bits": 4}):
        with pytest.raises(UserError, match=r"was trained with student\.adapter\."):
            distill(make("out", adapter))
    with pytest.raises(UserError, match=r"was trained with student\.adapter = "):
        distill(make("out", student={"adapter": None}))
    other = shutil.copytree(student_folder, tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    model.lm_head.weight.data[0] += 1
    model.save_pretrained(other)
    with pytest.raises(UserError, match="initial weights had fingerprint"):
        distill(make("out", student={"checkpoint": str(other)}))


def test_quantised_training_and_sharded_4_bits_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"student\.adapter: weights under quantization are all trained"):
        make("out", quantization={})
    for loop in ({"parallel": "fsdp"}, {"compile": True}):
        with pytest.raises(ValueError, match=r"student\.adapter\.base_bits: .* neither sharded nor compiled"):
            make("out", {"base_bits": 4}, loop=loop)
