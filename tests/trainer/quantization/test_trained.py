"""Whole runs under quantisation: what is written is what was trained, stopped or not, sharded or not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig, TrainerCallback

from schemas.errors import UserError
from schemas.train_config import TrainConfig
from support.amount import amount
from support.callbacks import StopAt
from support.folding_families import FAMILIES
from support.logged import losses, read_metrics
from support.ranks import run
from teacher_cache.stop_request import StopRequest
from trainer.distiller import distill
from trainer.evaluate import evaluate_folder
from trainer.initial_weights import materialise_student
from trainer.quantization import smoke
from trainer.quantization.grid import Grid
from trainer.quantization.scales_file import read_scales
from trainer.train_student_cli import main

Make = Callable[..., TrainConfig]
GRID = Grid(3, 32)
QUANTIZATION = {"group_size": 32, "calibration_samples": 8, "check": False}
LOOP = {"max_steps": 6, "save_every": 3}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the cache's vocabulary whose layers groups of 32 divide."""
    folder = tmp_path_factory.mktemp("quantised")
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.ndim == 2 else 1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def make(make_config: Make, start: Path, tmp_path: Path) -> Make:
    def configured(out: str = "out", loop: Any = None, quantization: Any = None, **changes: Any) -> TrainConfig:
        return make_config(
            **{
                "student": {"checkpoint": str(start)},
                "data": {"validation_fraction": 0.2},
                "loop": LOOP | {"validate_every": 3} | (loop or {}),
                "quantization": QUANTIZATION | (quantization or {}),
                "output": str(tmp_path / out),
                **changes,
            }
        )

    return configured


def final(config: TrainConfig, name: str = "final") -> dict[str, torch.Tensor]:
    return load_file(Path(config.output) / name / "model.safetensors")


def on_the_grid(config: TrainConfig) -> bool:
    """Whether every weight that has scales is an integer of the grid times one of them."""
    found = read_scales(Path(config.output) / "final")
    assert found is not None
    weights = final(config)
    return all(
        torch.equal(GRID.fake_quantise(weights[name], scale).float(), weights[name]) for name, scale in found[0].items()
    )


@pytest.mark.parametrize("scale", ["frozen", "learned"])
def test_the_final_model_is_what_was_validated_and_what_third_parties_read(
    make: Make, scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoke, "has_vllm", lambda: False)
    config = make(quantization={"scale": scale, "scale_lr": 1e-2, "check": True, "formats": ["dense", "container"]})
    summary = distill(config)
    output = Path(config.output)
    assert on_the_grid(config)
    measured = evaluate_folder(str(output / "final"), str(config.data.cache), 0.2)
    assert measured["kl"] == pytest.approx(read_metrics(output, "eval_kl")[-1]["eval_kl"], rel=1e-5)
    assert summary["quantization"]["dense"]["largest_difference"]["transformers"]["dense"] == 0
    wanted = AutoModelForCausalLM.from_pretrained(output / "final", dtype=torch.bfloat16).state_dict()
    for name in ("final-dense", "final-container"):
        model: Any = AutoModelForCausalLM.from_pretrained(output / name)
        model(torch.tensor([[3, 4]]))  # decompresses
        read = model.state_dict()
        assert all(torch.equal(read[key].to(torch.bfloat16), weight) for key, weight in wanted.items()), name
    start, end = (read_scales(output / folder) for folder in ("student-init", "final"))
    assert start is not None
    assert end is not None
    same = [torch.equal(end[0][name], scale_OG) for name, scale_OG in start[0].items()]
    assert all(same) if scale == "frozen" else not any(same)
    assert end[1].trained
    assert "lie on a grid of 3 bits" in (output / "final/README.md").read_text()
    assert "was trained with these weights" in (output / "final-dense/README.md").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": {"scale": "learned", "scale_lr": 1e-2}, "data": {"packing": True, "pack_tokens": 40}},
        {"quantization": {"activations": {"bits": 8}}, "loop": {"gradient_checkpointing": True}},
        {
            "quantization": {
                "activations": {"clip": 99.9, "levels": 7},
                "targets": ["gate_proj", "up_proj", "down_proj"],
            }
        },
    ],
    ids=["learned, packed", "rounded inputs, checkpointed", "clipped inputs, some layers"],
)
def test_a_stopped_run_ends_like_one_that_was_not(make: Make, changes: dict[str, Any]) -> None:
    whole, parts = make("whole", **changes), make("parts", **changes)
    distill(whole)
    stop = StopRequest()
    assert distill(parts, stop, [StopAt(4, stop)])["ended"] == "interrupted"
    distill(parts)
    assert losses(parts.output) == losses(whole.output)
    ours, theirs = final(parts), final(whole)
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    assert on_the_grid(whole)
    one, two = (load_file(Path(each.output) / "final/quantization/scales.safetensors") for each in (whole, parts))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("scale", amount(["frozen"], full=["frozen", "learned"]))
def test_two_shards_train_as_one_process_does(make: Make, scale: str) -> None:
    changes = {"scale": scale, "scale_lr": 1e-3}
    loop = {"gradient_checkpointing": True, "micro_batch_size": 1, "log_every": 1}
    one = make("one", loop=loop | {"gradient_accumulation": 4}, quantization=changes)
    two = make("two", loop=loop | {"gradient_accumulation": 2, "parallel": "fsdp"}, quantization=changes)
    distill(one)
    run(two, 2)
    found, wanted = losses(two.output), losses(one.output)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    for each in (one, two):
        assert on_the_grid(each)
    start = read_scales(Path(one.output) / "final")
    end = read_scales(Path(two.output) / "final")
    assert start is not None
    assert end is not None
    for name, scales in start[0].items():
        torch.testing.assert_close(end[0][name], scales, rtol=2e-2, atol=1e-3)


class Rates(TrainerCallback):
    """Records the optimiser's parameter groups in each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        *_, weights, scales = kwargs["optimizer"].param_groups
        self.seen.append((weights["lr"], scales["lr"], scales["weight_decay"]))


def test_scales_have_a_rate_of_their_own_which_may_change_at_resume(make: Make) -> None:
    rates, stop = Rates(), StopRequest()
    quantization = {"scale": "learned", "scale_lr": 1e-2}
    distill(make(quantization=quantization), stop, [rates, StopAt(3, stop)])
    distill(make(quantization=quantization | {"scale_lr": 1e-3}), callbacks=[rates])
    ratios = [scales / weights for weights, scales, _ in rates.seen]
    assert ratios == pytest.approx([1e-2 / 3e-3] * 3 + [1e-3 / 3e-3] * 3)
    assert {decay for *_, decay in rates.seen} == {0.0}


def test_early_stopping_writes_the_best_checkpoint(make: Make) -> None:
    config = make(loop={"max_steps": 40, "validate_every": 1, "early_stopping_patience": 2}, optimizer={"lr": 0.1})
    summary = distill(config)
    assert summary["final_step"] < summary["steps"]
    assert on_the_grid(config)
    measured = evaluate_folder(str(Path(config.output) / "final"), str(config.data.cache), 0.2)
    assert measured["kl"] == pytest.approx(summary["validation"]["kl"], rel=1e-5)


def test_in_bfloat16_the_final_weights_are_those_that_layers_ran_with(make: Make) -> None:
    config = make(loop={"bf16": True})
    distill(config)
    assert on_the_grid(config)
    scales = read_scales(Path(config.output) / "final")
    assert scales is not None
    masters = load_file(Path(config.output) / "checkpoint-6/model.safetensors")
    for name, scale in scales[0].items():
        assert torch.equal(GRID.fake_quantise(masters[name].to(torch.bfloat16), scale).float(), final(config)[name])


def test_export_takes_the_scales_of_a_trained_student(make: Make, tmp_path: Path) -> None:
    config = make(quantization={"formats": ["container"]})
    distill(config)
    folder = Path(config.output) / "final"

    def export(*options: str) -> Any:
        shutil.rmtree(tmp_path / "packed", ignore_errors=True)
        return CliRunner().invoke(main, ["export", str(folder), str(tmp_path / "packed"), "--no-check", *options])

    done = export("--json", "--format", "container")
    assert json.loads(done.stdout)["trained"], done.output
    ours, theirs = load_file(tmp_path / "packed/model.safetensors"), final(config, "final-container")
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    assert "made for 3 bits in groups of 32; leave out" in export("--bits", "4").output
    assert export("--format", "folded").exit_code == 0
    copy = load_file(tmp_path / "packed/model.safetensors")
    assert all(torch.equal(copy[name], weight.to(torch.bfloat16)) for name, weight in final(config).items())


def test_learned_scales_of_fused_experts(make: Make, tmp_path: Path) -> None:
    """Stopped and resumed; each expert's scales are in the files under the names of its own layers."""
    shape = FAMILIES["Qwen3-MoE"]().to_dict() | {"vocab_size": 61}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen3MoeConfig.from_dict(shape)).save_pretrained(tmp_path / "experts")
    changes = {"student": {"checkpoint": str(tmp_path / "experts")}, "loop": {"gradient_checkpointing": True}}
    whole, parts = (make(name, quantization={"scale": "learned", "scale_lr": 1e-2}, **changes) for name in "ab")
    distill(whole)
    stop = StopRequest()
    distill(parts, stop, [StopAt(4, stop)])
    distill(parts)
    assert losses(parts.output) == losses(whole.output)
    assert on_the_grid(whole)
    ours, theirs = final(parts), final(whole)
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    start, end = (read_scales(Path(whole.output) / folder) for folder in ("student-init", "final"))
    assert start is not None
    assert end is not None
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    assert not torch.equal(start[0][name], end[0][name])


def test_scales_are_chosen_once_and_other_settings_are_refused(make: Make) -> None:
    folder = materialise_student(make())
    digest = (folder / "quantization/scales.safetensors").read_bytes()
    assert materialise_student(make(quantization={"scale": "learned", "formats": ["container"]})) == folder
    assert (folder / "quantization/scales.safetensors").read_bytes() == digest
    with pytest.raises(UserError, match="made with quantization = "):
        materialise_student(make(quantization={"bits": 4}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"quantization": {"group_size": 128}},
            r"quantization\.group_size: 128: does not divide the 32 inputs .* use 32",
        ),
        ({"quantization": {"targets": ["q_proj"]}}, r"quantization\.targets: q_proj: q_proj, k_proj, v_proj read one"),
        ({"quantization": {"targets": ["out_proj"]}}, r"quantization\.targets: out_proj: a Llama.* has no such"),
    ],
)
def test_what_cannot_be_quantised_is_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distill(make(**changes))


def test_a_damaged_scales_file_is_refused(make: Make) -> None:
    config = make()
    path = materialise_student(config) / "quantization/scales.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"scales\.safetensors: cannot be read"):
        distill(config)
    path.unlink()
    with pytest.raises(UserError, match="has no scales; remove the folder"):
        distill(config)
