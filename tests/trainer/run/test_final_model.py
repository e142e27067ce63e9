import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from support.alive import WriteAlive
from support.ranks import finish_all, started
from trainer.student.parallel import load_weights


def test_a_sharded_student_and_its_optimiser_are_freed_before_the_final_model_is_loaded(make_config, tmp_path) -> None:
    """The final model is read in its own dtype, so the float32 model is whole nowhere."""
    config = make_config(
        student={"dtype": "bfloat16"}, loop={"max_steps": 2, "parallel": "fsdp"}, data={"validation_fraction": 0.2}
    )
    finish_all(started(config, 2, before=WriteAlive(tmp_path / "alive.json")))
    assert json.loads((tmp_path / "alive.json").read_text()) == {"students": 1}, "the one that is loaded"
    final = load_file(Path(config.output) / "final" / "model.safetensors")
    assert {weight.dtype for weight in final.values()} == {torch.bfloat16}
    trained = AutoModelForCausalLM.from_pretrained(Path(config.output) / "final", dtype=torch.float32)
    load_weights(trained, Path(config.output) / "checkpoint-2")
    for name, weight in final.items():
        assert torch.equal(weight, trained.state_dict()[name].bfloat16()), name
