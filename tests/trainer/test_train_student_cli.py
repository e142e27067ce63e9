"""The command line: in process, or in a subprocess where signals and imports are tested."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from support.commands import Forked, environment, kill_group
from support.ffn_models import tiny_ffn_model
from support.logged import read_metrics
from trainer.train_student_cli import main


@pytest.fixture
def config_file(make_config, tmp_path: Path):
    """``config_file(loop={...})`` writes the configuration and returns (path, output folder)."""

    def write(name: str = "train", **changes: Any) -> tuple[str, Path]:
        output = tmp_path / name
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(make_config(**changes, output=str(output)).model_dump(mode="json")))
        return str(path), output

    return write


def invoke(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def losses(output: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_metrics(output, "loss")]


def test_init_run_evaluate(config_file, student_folder, real_cache) -> None:
    source = {"checkpoint": None, "teacher": str(student_folder), "from_layers": [1]}
    path, output = config_file(student=source, data={"validation_fraction": 0.2})
    made = invoke("init", path, "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["layers"] == 1
    ran = invoke("run", path, "--json", "--set", "loop.max_steps=3")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["steps"] == 3
    measured = invoke("evaluate", str(output / "final"), str(real_cache), "--validation-fraction", "0.2", "--json")
    assert measured.exit_code == 0, measured.output
    for name in ("kl", "bits_per_byte"):
        assert json.loads(measured.stdout)[name] == pytest.approx(json.loads(ran.stdout)["validation"][name], rel=1e-5)
    assert "| bits_per_byte | " in (output / "final/README.md").read_text()
    table = invoke("evaluate", str(output / "final"), str(real_cache), "--limit", "3")
    assert "perplexity" in table.stdout
    assert "bits_per_byte" in table.stdout
    assert "top1_agreement" in table.stdout


def test_init_says_what_was_pruned(config_file, tmp_path: Path) -> None:
    model = tiny_ffn_model("llama")
    model.save_pretrained(tmp_path / "teacher")
    path, _ = config_file(student={"checkpoint": None, "teacher": str(tmp_path / "teacher"), "ffn": {"width": 64}})
    made = invoke("init", path, "--json")
    assert made.exit_code == 0, made.output
    before = model.num_parameters()
    assert json.loads(made.stdout)["ffn"] == {
        "intermediate_size": {"before": 160, "after": 64},
        "parameters": {"before": before, "after": before - 2 * 96 * (3 * 32 + 2)},  # three matrices, two biases
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.yaml"], "error: absent.yaml: cannot read the configuration: No such file or directory"),
        (["run", "CONFIG", "--set", "loop.steps=3"], "loop.steps: unknown key"),
        (["run", "CONFIG", "--set", "data.cache=/nowhere"], "/nowhere"),
        (
            ["run", "CONFIG", "--set", "student.checkpoint=/nowhere"],
            "student.checkpoint: /nowhere (no such folder): cannot read a model",
        ),
        (["evaluate", "/nowhere", "CACHE"], "MODEL: /nowhere (no such folder): cannot read a model configuration"),
    ],
)
def test_errors_are_one_line_and_exit_2(config_file, real_cache, arguments: list[str], message: str) -> None:
    path, output = config_file()
    result = invoke(*[{"CONFIG": path, "CACHE": str(real_cache)}.get(a, a) for a in arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (output / "final").exists()


def test_help_does_not_import_torch() -> None:
    code = "import sys, trainer.train_student_cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("key", ["cache", "validation_cache"])
def test_a_missing_cache_is_reported_before_torch_is_loaded(config_file, tmp_path: Path, key: str) -> None:
    path, _ = config_file(data={key: str(tmp_path / "nowhere")})
    code = (
        "import sys; from click.testing import CliRunner; from trainer.train_student_cli import main; "
        f"run = CliRunner().invoke(main, ['run', {path!r}]); print(run.stderr); "
        "sys.exit('torch' in sys.modules or 10 * run.exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 20, done.stderr
    assert done.stdout.startswith(f"error: {tmp_path}/nowhere/manifest.json: not found, so this is not a cache; ")


def wait_for_steps(output: Path, steps: int, process: Forked) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (output / "metrics.jsonl").exists() and (output / "metrics.jsonl").read_text().count("\n") >= steps:
            return
        time.sleep(0.02)
    pytest.fail(f"no {steps} steps: {process.communicate()}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_and_tells_how_to_resume(config_file, number: int, code: int) -> None:
    path, output = config_file(loop={"max_steps": 100_000, "save_every": 100_000})
    process = Forked("train-student", "run", path)
    wait_for_steps(output, 3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert "a checkpoint is saved, the same command resumes from it" in errors
    (checkpoint,) = output.glob("checkpoint-*")
    state = json.loads((checkpoint / "distill_state.json").read_text())
    assert checkpoint.name == f"checkpoint-{state['global_step']}"
    assert losses(output)[-1][0] == state["global_step"]


def test_killed_at_random_instants_every_later_loss_is_the_same(config_file) -> None:
    loop = {"max_steps": 60, "save_every": 3, "log_every": 2, "keep_checkpoints": 1}
    path, whole = config_file("whole", loop=loop)
    assert invoke("run", path).exit_code == 0
    path, output = config_file("killed", loop=loop)
    rng = random.Random(0)
    for _ in range(3):
        process = Forked("train-student", "run", path)
        wait_for_steps(output, min(len(losses(output)) if output.exists() else 0, 25) + 2, process)
        time.sleep(rng.random() * 0.3)
        kill_group(process)
    assert invoke("run", path).exit_code == 0
    assert [step for step, _ in losses(output)] == list(range(2, 61, 2))
    np.testing.assert_allclose(losses(output), losses(whole), atol=1e-5)
    assert len(list(output.glob("checkpoint-*"))) == 1
