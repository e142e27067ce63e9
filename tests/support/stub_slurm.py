"""A Slurm of one machine, as far as scripts of arrays need it: ``sbatch``, ``squeue`` and ``scontrol`` for PATH.

``StubSlurm`` writes them into a folder; they run this file. ``sbatch`` runs the whole array and ends with it. A task is
put back into the queue by ``scontrol requeue``, and starts again when its script has ended.
"""

import itertools
import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

JOB = "42"
NEEDED = {"array", "requeue", "signal", "open-mode", "output"}


class StubSlurm:
    """Its programs are in ``folder``, beside the state of the tasks."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        for name in ("sbatch", "squeue", "scontrol"):
            program = folder / name
            line = shlex.join([sys.executable, "-SE", __file__, str(folder), name])
            program.write_text(f'#!/bin/bash\nexec {line} "$@"\n')
            program.chmod(0o755)

    def start(self, script: str, folder: Path) -> subprocess.Popen[str]:
        """Submit a script, as from ``folder``; ends with the greatest status of a task."""
        env = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}
        (folder / "script.sh").write_text(script)
        return subprocess.Popen([self.folder / "sbatch", "script.sh"], cwd=folder, env=env, text=True)

    def warn(self, task: int) -> None:
        """SIGTERM to the script of a task, and to nothing else, as ``--signal=B:TERM`` asks for."""
        os.kill(int((self.folder / f"{JOB}_{task}.pid").read_text()), signal.SIGTERM)

    def cancel(self) -> None:
        """From now on tasks are ending."""
        (self.folder / "state").write_text("COMPLETING\n")

    def restarts(self, task: int) -> int:
        return int((self.folder / f"{JOB}_{task}.restarts").read_text())


def _sbatch(state: Path, arguments: list[str]) -> int:
    script = Path(arguments[0])
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines)
    assert options.keys() >= NEEDED, f"not for this stub: {options}"
    tasks, _, at_a_time = options["array"].partition("%")
    first, last = map(int, tasks.split("-"))
    with ThreadPoolExecutor(int(at_a_time or last - first + 1)) as pool:
        return max(pool.map(lambda task: _run(state, script, options, task), range(first, last + 1)))


def _run(state: Path, script: Path, options: dict[str, str], task: int) -> int:
    """Run a task until its script ends and nobody has put it back."""
    name = f"{JOB}_{task}"
    log = Path(options["output"].replace("%A", JOB).replace("%a", str(task)))
    env = {**os.environ, "SLURM_JOB_ID": JOB, "SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": str(task)}
    for restart in itertools.count():
        (state / f"{name}.restarts").write_text(str(restart))
        with log.open("a" if options["open-mode"] == "append" else "w") as output:
            process = subprocess.Popen(
                ["bash", script], stdout=output, stderr=output, env={**env, "SLURM_RESTART_COUNT": str(restart)}
            )
            (state / f"{name}.pid").write_text(str(process.pid))
            status = process.wait()
        requeued = state / f"{name}.requeued"
        if not requeued.exists():
            return status
        requeued.unlink()


def _scontrol(state: Path, arguments: list[str]) -> int:
    action, task = arguments
    assert action == "requeue"
    assert (state / f"{task}.pid").exists(), f"no such task: {task}"
    (state / f"{task}.requeued").touch()
    return 0


def _squeue(state: Path, arguments: list[str]) -> int:
    assert "--format=%T" in arguments
    print((state / "state").read_text() if (state / "state").exists() else "RUNNING")
    return 0


if __name__ == "__main__":
    programs = {"sbatch": _sbatch, "scontrol": _scontrol, "squeue": _squeue}
    sys.exit(programs[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:]))
