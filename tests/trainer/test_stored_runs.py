"""Runs with their output in a store, killed and continued on another number of ranks and other machines. Gloo.

Each start has a new working folder, as on a machine that was not there before.
"""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import psutil
import pytest

from schemas.train_config import TrainConfig
from support import commands
from support.amount import FULL
from support.commands import Forked, command_line, environment, finish, kill_group
from support.instants import at_change
from support.logged import losses
from support.ranks import finish_all, free_port, started
from support.stored import complete_checkpoints, stored_at, stored_losses
from trainer.distiller import distill

MakeConfig = Callable[..., TrainConfig]
KILLS = tuple((1 + i % 2, random.Random(i).randrange(50)) for i in range(20))
"""Ranks, and before which of the first rank's requests that change the store it is killed."""


def of_ranks(config: TrainConfig, ranks: int) -> TrainConfig:
    """So many ranks with the same rows per step."""
    loop = config.loop.model_copy(update={"micro_batch_size": 1, "gradient_accumulation": 4 // ranks})
    return config.model_copy(update={"loop": loop})


def on_ranks(config: TrainConfig, url: str, scratch: Path, ranks: int) -> TrainConfig:
    return of_ranks(stored_at(config, url, scratch), ranks)


def start(config: TrainConfig, folder: Path, ranks: int, before: Callable[[], None] | None = None) -> list[Forked]:
    return started(config, ranks, before, folder / f"{time.monotonic_ns()}.json")


def wait_for_end(process: Forked, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def check_same(url: str, wanted: TrainConfig) -> None:
    found, other = stored_losses(url), dict(losses(wanted.output))
    assert found.keys() == other.keys()
    for step, loss in found.items():
        assert loss == pytest.approx(other[step], rel=1e-4), step


@pytest.mark.timeout(3000)
@pytest.mark.skipif(not FULL, reason="minutes; TEST_FULL=1 runs it")
def test_killed_runs_go_on_with_one_rank_and_with_two(make_config: MakeConfig, s3_url: str, tmp_path: Path) -> None:
    """After each SIGKILL, what has a mark in the store is whole."""
    whole = make_config(loop={"max_steps": 40, "save_every": 2}, output=str(tmp_path / "whole"))
    distill(whole)
    killed = 0
    for number, (ranks, request) in enumerate(KILLS):
        config = on_ranks(whole, s3_url, tmp_path / f"machine-{number}", ranks)
        processes = start(config, tmp_path, ranks, at_change(s3_url, request, signal.SIGKILL))
        wait_for_end(processes[0])
        killed += processes[0].poll() == -signal.SIGKILL
        for process in processes:
            kill_group(process)
        complete_checkpoints(s3_url)
    assert killed == len(KILLS)
    config = on_ranks(whole, s3_url, tmp_path / "last", 1)
    finish_all(start(config, tmp_path, 1))
    check_same(s3_url, whole)
    assert complete_checkpoints(s3_url) == [38, 40]


def machines(config: TrainConfig, folder: Path) -> list[Forked]:
    """Two machines with one rank each, which share no disk."""
    port, processes = free_port(), []
    for rank in range(2):
        (folder / f"machine-{rank}").mkdir()
        path = folder / f"machine-{rank}.json"
        path.write_text(stored_at(config, config.output, folder / f"machine-{rank}").model_dump_json())
        job = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {name: str(value) for name, value in {**job, "RANK": rank, "LOCAL_RANK": 0}.items()}
        processes.append(Forked("train-student", "run", path, "--json", env=environment() | env))
    return processes


@pytest.mark.skipif(not FULL, reason="minutes; TEST_FULL=1 runs it")
@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_machines_without_a_shared_disk_write_one_checkpoint(
    make_config: MakeConfig, student_folder: Path, s3_url: str, tmp_path: Path, parallel: str
) -> None:
    """Random initial weights, which the first machine makes; the second run goes on from two steps."""
    student = {"checkpoint": None, "config": str(student_folder / "config.json")}
    whole = make_config(student=student, output=str(tmp_path / "whole"))
    for steps in (2, 4):
        loop = whole.loop.model_copy(update={"max_steps": steps})
        distill(whole.model_copy(update={"loop": loop}))
        folder = tmp_path / f"{steps}"
        folder.mkdir()
        config = of_ranks(stored_at(whole, s3_url, folder, max_steps=steps, parallel=parallel), 2)
        summary = finish_all(machines(config, folder))
        assert summary["steps"] == steps
        assert complete_checkpoints(s3_url)[-1] == steps
        assert [path for path in folder.glob("machine-*/*") if path.is_dir()] == []
    assert 0 < summary["tokens_this_run"] < summary["tokens"]
    names = fsspec.filesystem("s3").find(f"{s3_url}/checkpoint-4")
    written_by = "__{}_0.distcp" if parallel == "fsdp" else "rng_state_{}.pth"
    assert all(any(name.endswith(written_by.format(rank)) for name in names) for rank in range(2))
    check_same(s3_url, whole)


def ranks_below(process: "commands.Process") -> dict[int, psutil.Process]:
    """Processes of a torchrun, by rank."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            rank = child.environ().get("RANK")
        except psutil.Error:
            continue
        if rank is not None and child.ppid() == process.pid:
            found[int(rank)] = child
    return found


@pytest.mark.skipif(not FULL, reason="minutes; TEST_FULL=1 runs it")
@pytest.mark.timeout(900)
def test_torchrun_starts_the_ranks_again_when_one_dies(make_config: MakeConfig, s3_url: str, tmp_path: Path) -> None:
    """A rank is killed once there is a checkpoint."""
    whole = make_config(loop={"max_steps": 12, "save_every": 3}, output=str(tmp_path / "whole"))
    distill(whole)
    path = tmp_path / "elastic.json"
    path.write_text(on_ranks(whole, s3_url, tmp_path / "scratch", 2).model_dump_json())
    options = ("--standalone", "--nproc-per-node=2", "--max-restarts=2", "--no-python")
    process = commands.start_installed("torchrun", *options, *command_line("train-student", "run", path, "--json"))
    try:
        end = time.monotonic() + 300
        while not complete_checkpoints(s3_url):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.2)
        victim = ranks_below(process)[1]
        victim.kill()
        done = finish(process, timeout=400)
    finally:
        kill_group(process)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert 0 < summary["tokens_this_run"] < summary["tokens"], "it went on from the checkpoint"
    check_same(s3_url, whole)
