"""Students and teachers of multimodal classes: their language model is what is trained, pruned and saved."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.errors import UserError
from support.nested import KINDS, nested_model, text_logits, write_nested
from trainer.distiller import distill
from trainer.evaluate import evaluate_folder
from trainer.initial_weights import materialise_student
from trainer.student.build import load_model, load_model_config

IDS = torch.arange(3, 20)[None]


def reloaded(folder: Path) -> torch.nn.Module:
    """The model in a folder as transformers loads it by itself; every weight must be there and nothing else."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_is_the_student_and_computes_what_the_whole_model_does(tmp_path: Path, kind: str) -> None:
    folder = write_nested(tmp_path / "whole", kind)
    student = load_model(folder, "student", torch.float32).eval()
    assert not any("vis" in name for name, _ in student.named_parameters())
    assert load_model_config(folder, "student").num_hidden_layers == student.config.num_hidden_layers == 4
    torch.testing.assert_close(text_logits(student, IDS), text_logits(nested_model(kind), IDS))


@pytest.mark.parametrize("kind", KINDS)
def test_trained_saved_and_loaded_again(make_config, tmp_path: Path, kind: str) -> None:
    folder = write_nested(tmp_path / "whole", kind)
    loop = {"max_steps": 2, "save_every": 1}
    config = make_config(student={"checkpoint": str(folder)}, loop=loop, data={"validation_fraction": 0.3})
    assert distill(config)["steps"] == 2
    final = Path(config.output) / "final"
    settings = json.loads((final / "config.json").read_text())
    assert settings["architectures"] == [{"gemma3": "Gemma3ForCausalLM", "qwen3_5": "Qwen3_5ForCausalLM"}[kind]]
    student = reloaded(final)
    moved = text_logits(student, IDS) - text_logits(nested_model(kind), IDS)
    assert 1e-3 < moved.abs().max() < 1
    torch.testing.assert_close(
        text_logits(reloaded(Path(config.output) / "checkpoint-2"), IDS), text_logits(student, IDS)
    )
    longer = config.model_copy(update={"loop": config.loop.model_copy(update={"max_steps": 3})})
    assert distill(longer)["steps"] == 3, "resumes from the checkpoint of a language model"
    assert evaluate_folder(str(folder), config.data.shares[0].url)["kl"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_by_layers(make_config, tmp_path: Path, kind: str) -> None:
    folder = write_nested(tmp_path / "whole", kind)
    config = make_config(student={"checkpoint": None, "teacher": str(folder), "from_layers": [0, 3]})
    student = reloaded(materialise_student(config))
    types = nested_model(kind).config.text_config.layer_types
    assert student.config.layer_types == [types[0], types[3]]
    whole = nested_model(kind).model.language_model.state_dict()
    for name, weight in student.model.state_dict().items():
        assert torch.equal(weight, whole[name.replace("layers.1.", "layers.3.")]), name
    summary = distill(make_config(student={"checkpoint": config.output + "/student-init"}, loop={"max_steps": 1}))
    assert summary["steps"] == 1


def test_a_language_model_without_a_class_of_its_own_is_refused(tmp_path: Path, monkeypatch) -> None:
    folder = write_nested(tmp_path / "whole", "gemma3")
    monkeypatch.setattr("trainer.student.build.language_model_class", lambda config: None)
    with pytest.raises(UserError, match=r"^student: .*whole: the language model of a Gemma3Config has no class of its"):
        load_model(folder, "student", torch.float32)
