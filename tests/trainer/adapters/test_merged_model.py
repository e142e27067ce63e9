"""Merging: what the command writes computes what PEFT computes with base and adapter."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from schemas.errors import UserError
from schemas.train_config import TrainConfig
from trainer.adapters import merged_model
from trainer.adapters.lora_layers import quantisation
from trainer.adapters.merged_model import merge_folder
from trainer.distiller import distill
from trainer.evaluate import evaluate_folder
from trainer.train_student_cli import main

Make = Callable[..., TrainConfig]
IDS = torch.arange(3, 45).view(2, 21)


@pytest.fixture
def trained(make_config: Make, student_folder: Path) -> Callable[..., TrainConfig]:
    """``trained({adapter})``: a finished run with an adapter."""

    def run(adapter: dict[str, Any] | None = None, lr: float = 3e-2, **student: Any) -> TrainConfig:
        settings = {"checkpoint": str(student_folder), "adapter": {"r": 4} | (adapter or {})} | student
        config = make_config(student=settings, optimizer={"lr": lr})
        distill(config)
        return config

    return run


def merge(config: TrainConfig, *options: str) -> Result:
    folder = Path(config.output)
    return CliRunner().invoke(main, ["merge", str(folder / "final"), str(folder / "merged"), *options])


@torch.no_grad()
def logits(model: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return model.eval().to(dtype)(input_ids=IDS).logits


def with_peft(config: TrainConfig, base: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(base, Path(config.output) / "final"), dtype)


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("adapter", [{}, {"rslora": True, "targets": ["q_proj", "down_proj"], "alpha": 7}])
def test_a_merged_model_computes_what_base_and_adapter_do(
    trained: Make, student_folder: Path, adapter: dict[str, Any], dtype: torch.dtype
) -> None:
    """In float64, far from the base: what is left is the rounding of merged weights. In float32: also of products."""
    config = trained(adapter, lr=3e-2 if dtype == torch.float64 else 3e-3)
    done = merge(config, "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["merged_layers"] == 2 * len(adapter.get("targets", range(7)))
    assert summary["dtype"] == "float32"
    base = AutoModelForCausalLM.from_pretrained(student_folder)
    plain, wanted = logits(base, dtype), with_peft(config, base, dtype)
    found = logits(AutoModelForCausalLM.from_pretrained(Path(config.output) / "merged"), dtype)
    assert difference(found, wanted) <= 1e-6
    assert difference(found, plain) > 1e-3, "the adapter does something"


def test_weights_of_4_bits_are_merged_as_they_were_trained(trained: Make, student_folder: Path) -> None:
    config = trained({"base_bits": 4})
    assert merge(config).exit_code == 0
    four_bits = AutoModelForCausalLM.from_pretrained(
        student_folder, quantization_config=quantisation(config.student.adapter, torch.float32), dtype=torch.float32
    )
    for module in four_bits.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    wanted = with_peft(config, four_bits)
    merged = AutoModelForCausalLM.from_pretrained(Path(config.output) / "merged")
    found = logits(merged)
    assert not hasattr(merged.config, "quantization_config")
    assert difference(found, wanted) <= 1e-5
    whole = with_peft(config, AutoModelForCausalLM.from_pretrained(student_folder))
    assert difference(whole, wanted) > 1e-3, "4 bits make a difference"


def test_the_merged_model_has_the_students_type_and_another_one_if_asked(trained: Make) -> None:
    config = trained(dtype="bfloat16")
    assert merge(config).exit_code == 0
    weights = load_file(Path(config.output) / "merged" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    shutil.rmtree(Path(config.output) / "merged")
    assert merge(config, "--dtype", "float32").exit_code == 0
    weights = load_file(Path(config.output) / "merged" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_the_base_is_found_where_it_is_and_no_other_is_taken(
    trained: Make, student_folder: Path, tmp_path: Path
) -> None:
    config = trained()
    final, base = Path(config.output) / "final", shutil.copytree(student_folder, tmp_path / "moved")
    record = final / "distill_adapter.json"
    record.write_text(record.read_text().replace(str(student_folder), str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"its base model is not at .*gone or .*student-init; name its folder with"):
        merge_folder(final, tmp_path / "merged")
    merge_folder(final, tmp_path / "merged", str(base))
    with pytest.raises(UserError, match="merged: exists; remove it, or name another OUTPUT"):
        merge_folder(final, tmp_path / "merged", str(base))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight.data[0] += 1
    model.save_pretrained(base)
    with pytest.raises(UserError, match=r"--base: .*moved: has the fingerprint .*, the adapter was trained on"):
        merge_folder(final, tmp_path / "other", str(base))
    assert not (tmp_path / "other").exists()


def test_a_damaged_or_foreign_adapter_is_refused(
    trained: Make, tmp_path: Path, real_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trained()
    final, merged = Path(config.output) / "final", tmp_path / "merged"
    with pytest.raises(UserError, match=r"contains an adapter .*`train-student merge`"):
        evaluate_folder(str(final), str(real_cache))
    path = final / "adapter_model.safetensors"
    whole, weights = path.read_bytes(), load_file(path)
    name = next(iter(weights))
    first = next(name for name in weights if ".lora_A." in name)
    wrong = {
        "lacks ": {key: weight for key, weight in weights.items() if key != name},
        "has model": weights | {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": weights[name].clone()},
        "has the shape": weights | {name: weights[name].new_zeros(3, 3)},
        "lora_A.default.weight has the shape": weights | {first: weights[first].new_zeros(4, 3)},
        "wanted finite floating-point values": weights | {name: weights[name] * torch.nan},
        "finite floating-point values; copy": weights | {name: weights[name].int()},
        "not the name of a weight of a LoRA adapter": weights | {"lm_head.weight": weights[name].clone()},
    }
    for message, stored in wrong.items():
        save_file(stored, path)
        with pytest.raises(UserError, match=message):
            merge_folder(final, merged)
    path.write_bytes(whole)
    record = final / "distill_adapter.json"
    recorded = record.read_text()
    record.write_text(recorded.replace('"r": 4', '"r": 65536'))
    monkeypatch.setattr(merged_model, "add_lora", lambda *_: pytest.fail("layers of the recorded rank were made"))
    with pytest.raises(UserError, match=r"has the shape .*, wanted a matrix of rank 65536, as distill_adapter\.json"):
        merge_folder(final, merged)
    record.write_text(recorded)
    path.write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: cannot be read"):
        merge_folder(final, merged)
    path.unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        merge_folder(final, merged)
    (final / "distill_adapter.json").write_text("{}")
    with pytest.raises(UserError, match=r"distill_adapter\.json: "):
        merge_folder(final, merged)
    (final / "distill_adapter.json").unlink()
    with pytest.raises(UserError, match=r"has no distill_adapter\.json, which train-student writes"):
        merge_folder(final, merged)
    assert not merged.exists()
