"""One training run in several processes: forked, with the environment that torchrun gives them, or by torchrun."""

import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.train_config import TrainConfig
from support import commands
from support.commands import Forked, command_line, environment, finish, kill_group


def written(config: TrainConfig) -> Path:
    path = Path(config.output).with_suffix(".json")
    path.write_text(config.model_dump_json())
    return path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(config: TrainConfig, ranks: int) -> "subprocess.Popen[str]":
    command = command_line("train-student", "run", written(config), "--json")
    options = (f"--nproc-per-node={ranks}", f"--master-port={free_port()}", "--no-python")
    return commands.start_installed("torchrun", *options, *command)


def started(
    config: TrainConfig, ranks: int, before: Callable[[], None] | None = None, path: Path | None = None
) -> list[Forked]:
    """So many processes that train; ``before``: what the first one does first; ``path``: of the configuration."""
    if path is None:
        path = written(config)
    else:
        path.write_text(config.model_dump_json())
    port = free_port()
    processes = []
    for rank in range(ranks):
        job = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {name: str(value) for name, value in {**job, "RANK": rank, "LOCAL_RANK": rank}.items()}
        first = before if rank == 0 else None
        processes.append(Forked("train-student", "run", path, "--json", env=environment() | env, before=first))
    return processes


def run(config: TrainConfig, ranks: int) -> dict[str, Any]:
    """Train in so many processes; returns what they print, which is one summary."""
    return finish_all(started(config, ranks))


def finish_all(processes: list[Forked]) -> dict[str, Any]:
    """Wait until all ranks have ended well; returns the summary."""
    deadline = time.monotonic() + 300
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes) or time.monotonic() > deadline:
            for process in processes:
                kill_group(process)
        time.sleep(0.02)
    ended = [finish(process) for process in processes]
    assert all(done.returncode == 0 for done in ended), [done.stderr for done in ended]
    return json.loads("".join(done.stdout for done in ended))
