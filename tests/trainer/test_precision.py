"""Students of 16-bit types are trained in float32: each weight moves what AdamW says, in float64 by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from schemas.errors import UserError
from support.logged import read_metrics
from trainer.distiller import distill

DTYPES = ["float32", "bfloat16", "float16"]
LR = 2e-5


class Gradients(TrainerCallback):
    """Keeps each step's gradients as the optimiser gets them, and the weights before."""

    def __init__(self) -> None:
        self.steps: list[dict[str, tuple[np.ndarray, np.ndarray]]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        named = model.named_parameters()
        self.steps.append(
            {name: (weight.detach().double().numpy(), weight.grad.double().numpy()) for name, weight in named}
        )


def moved(config: Any, gradients: Gradients) -> dict[str, np.ndarray]:
    """By how much each weight moved in the run, from its first step to its last checkpoint."""
    last = max(Path(config.output).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    weights = load_file(last / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    return {name: weights[name].double().numpy() - before for name, (before, _) in gradients.steps[0].items()}


@pytest.fixture
def sixteen_bit(tmp_path: Path, student_folder: Path):
    """``sixteen_bit(dtype)``: the student with weights and norms that are numbers of this type."""

    def make(dtype: str) -> str:
        model = AutoModelForCausalLM.from_pretrained(student_folder, dtype=getattr(torch, dtype))
        model.save_pretrained(tmp_path / dtype)
        return str(tmp_path / dtype)

    return make


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_moves_each_weight_by_what_adamw_says(make_config, sixteen_bit, dtype: str) -> None:
    """The rate of the recipe, two steps, against float64; a norm of 1.0 has steps of 2^-7 in bfloat16."""
    config = make_config(
        student={"checkpoint": sixteen_bit(dtype), "dtype": dtype},
        optimizer={"lr": LR, "weight_decay": 0.01},
        loop={"max_steps": 2},
    )
    gradients = Gradients()
    distill(config, callbacks=[gradients])
    rates = [LR, LR / 2]  # cosine over two steps
    for name, movement in moved(config, gradients).items():
        weight, _ = gradients.steps[0][name]
        start, mean, square = weight, np.zeros_like(weight), np.zeros_like(weight)
        for number, (rate, step) in enumerate(zip(rates, gradients.steps, strict=True), start=1):
            gradient = step[name][1]
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            decay = 0.0 if "norm" in name else 0.01
            weight = weight * (1 - rate * decay)
            weight = weight - rate * (mean / (1 - 0.9**number)) / (np.sqrt(square / (1 - 0.999**number)) + 1e-8)
        rounding = 4 * np.spacing(np.abs(start).astype(np.float32)).astype(np.float64)
        np.testing.assert_array_less(np.abs(movement - (weight - start)), rounding + 1e-3 * LR, err_msg=name)
        assert np.abs(movement).mean() > LR / 10, f"{name} does not move"


def test_twenty_steps_move_sixteen_bit_students_as_they_move_float32_ones(make_config, sixteen_bit, tmp_path) -> None:
    """All start from the same weights, which both types hold; products are bfloat16 for bfloat16."""
    start = sixteen_bit("bfloat16")
    seen = {}
    for dtype in DTYPES:
        config = make_config(
            student={"checkpoint": start, "dtype": dtype},
            optimizer={"lr": LR},
            loop={"max_steps": 20, "save_every": 20},
            output=str(tmp_path / f"out-{dtype}"),
        )
        gradients = Gradients()
        distill(config, callbacks=[gradients])
        seen[dtype] = {name: np.abs(movement).mean() for name, movement in moved(config, gradients).items()}
        final = AutoModelForCausalLM.from_pretrained(Path(config.output) / "final", dtype="auto")
        assert final.dtype == getattr(torch, dtype), "the final model is what was asked for"
    losses = {dtype: [record["loss"] for record in read_metrics(tmp_path / f"out-{dtype}", "loss")] for dtype in DTYPES}
    assert losses["float16"] == losses["float32"] != losses["bfloat16"], "products are float32, float32, bfloat16"
    for dtype in DTYPES[1:]:
        for name, movement in seen[dtype].items():
            assert 1 / 2 < movement / seen["float32"][name] < 2, (dtype, name)


def test_weights_that_the_final_type_cannot_hold_are_refused(make_config, student_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(student_folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = 1e5  # more than float16 can hold
    model.save_pretrained(tmp_path / "large")
    config = make_config(student={"checkpoint": str(tmp_path / "large"), "dtype": "float16"}, loop={"max_steps": 1})
    with pytest.raises(UserError, match=r"^student\.dtype: weights are too large for float16; set it to bfloat16"):
        distill(config)
    assert not (Path(config.output) / "final").exists()
