"""Training from a cache with the installed commands: no teacher anywhere, exact resume after SIGKILL."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import Forked, environment, kill_group, run, run_ok
from support.logged import read_metrics
from support.workspace import Workspace


def losses(output: Path) -> dict[int, float]:
    """Training loss by step; each step must be there once."""
    found: dict[int, float] = {}
    for line in read_metrics(output):
        if "loss" in line:
            assert line["step"] not in found, f"step {line['step']} stands twice"
            found[line["step"]] = line["loss"]
    return found


def test_trains_with_the_teacher_deleted_and_without_vllm(workspace: Workspace, make_cache: Callable[[], Path]) -> None:
    cache = make_cache()
    output = workspace.folder / "student"
    config = workspace.train_config(cache, output)
    run_ok("train-student", "init", config)
    shutil.rmtree(workspace.teacher)
    shutil.rmtree(workspace.corpus)
    program = (
        "import sys; from trainer.train_student_cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('vllm modules:', [m for m in sys.modules if m.split('.')[0] == 'vllm'])\n"
        "writing = ('teacher_cache.engines', 'teacher_cache.job')\n"
        "print('engine modules:', [m for m in sys.modules if m.startswith(writing)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(config)],
        capture_output=True, text=True, env=environment(), timeout=300, check=True,
    )  # fmt: skip
    assert "vllm modules: []" in done.stdout
    assert "engine modules: []" in done.stdout
    assert sorted(losses(output)) == list(range(1, 13))
    digest = json.loads(run_ok("cache-tools", "inspect", cache, "--json"))["manifest_digest"]
    assert digest in (output / "final/README.md").read_text()
    for checkpoint in output.glob("checkpoint-*"):
        assert digest in (checkpoint / "data_state.json").read_text()
    result = json.loads(run_ok("train-student", "evaluate", output / "final", cache, "--json"))
    assert result["kl"] > 0


@pytest.mark.parametrize("packing", [False, True])
def test_sigkill_then_resume_continues_exactly(
    workspace: Workspace, make_cache: Callable[[], Path], packing: bool
) -> None:
    cache = make_cache()
    data = {"cache": str(cache), "validation_fraction": 0.2, "packing": packing, "pack_tokens": 96}
    whole, killed = workspace.folder / "whole", workspace.folder / "killed"
    run_ok("train-student", "run", workspace.train_config(cache, whole, data=data))
    config = workspace.train_config(cache, killed, data=data)
    process = Forked("train-student", "run", config)
    wait_for(lambda: (killed / "metrics.jsonl").exists() and any(line["step"] >= 5 for line in read_metrics(killed)))
    kill_group(process)
    reached = max(losses(killed))
    run_ok("train-student", "run", config)
    uninterrupted, resumed = losses(whole), losses(killed)
    assert uninterrupted.keys() == resumed.keys()
    assert 5 <= reached < 12, "the kill came too late to prove anything"
    assert max(abs(uninterrupted[step] - resumed[step]) for step in uninterrupted) <= 1e-5


def test_sigterm_saves_a_checkpoint(workspace: Workspace, make_cache: Callable[[], Path]) -> None:
    cache = make_cache()
    output = workspace.folder / "student"
    loop = {"max_steps": 500, "micro_batch_size": 4, "save_every": 1000}
    config = workspace.train_config(cache, output, loop=loop)
    process = Forked("train-student", "run", config)
    wait_for(lambda: (output / "metrics.jsonl").exists() and len(read_metrics(output)) > 2)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert list(output.glob("checkpoint-*/distill_state.json"))


def test_resuming_on_another_cache_is_refused(workspace: Workspace, make_cache: Callable[[], Path]) -> None:
    cache = make_cache()
    output = workspace.folder / "student"
    run_ok("train-student", "run", workspace.train_config(cache, output))
    other = workspace.folder / "other"
    run_ok("teacher-cache", "run", workspace.cache_config(other, capture={"logits": {"k": 8}, "draws": None}))
    done = run("train-student", "run", workspace.train_config(other, output))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "digest" in done.stderr


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
