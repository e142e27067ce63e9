"""A Slurm script: an array of workers, each of which is put back into Slurm's queue when its time is over.

Slurm warns the script, not the worker (``--signal=B:TERM``). It passes the signal on, waits until the worker has
finished its unit, and asks for a new start. A worker that takes too long is killed shortly before Slurm would do it,
since Slurm does not start jobs again that have reached their limit. Jobs that were cancelled are no longer RUNNING, and
stay so.
"""

import logging
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UserError
from teacher_cache.fleet.worker_command import WorkerCommand, check_form, check_printable

TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # of each node, as a rule
PATIENCE = 0.8  # share of the grace after which a worker that has not ended is killed
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?", re.ASCII)
logger = logging.getLogger(__name__)

BODY = """
worker=
ends= # set when the worker was told to stop: the second of this script after which it is killed
stop() {
  trap : TERM # once: a second signal would end the worker at once
  ends=$((SECONDS + patience))
  [ -z "$worker" ] || kill -TERM "$worker"
}
trap stop TERM

echo "worker $SLURM_ARRAY_TASK_ID on $HOSTNAME, restarts: ${SLURM_RESTART_COUNT:-0}"
run_worker &
worker=$!
[ -z "$ends" ] || kill -TERM "$worker"
wait "$worker" # or until the signal
status=$?

if [ -n "$ends" ]; then
  while kill -0 "$worker" 2>/dev/null && [ "$SECONDS" -lt "$ends" ]; do sleep 0.5; done
  kill -KILL "$worker" 2>/dev/null
  wait "$worker"
  status=$?
  task=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} # SLURM_JOB_ID of the last task is the whole array's
  if [ "$status" -gt 128 ] && [ "$(squeue --noheader --format=%T --jobs="$task")" = RUNNING ]; then
    scontrol requeue "$task"
  fi
fi
exit "$status"
"""


@dataclass(frozen=True)
class SlurmOptions:
    """What is asked of Slurm; None: what the cluster gives."""

    workers: int
    at_a_time: int | None = None
    gpus: int | None = None  # of a worker; None: as many as the model is split over
    cpus: int | None = None
    mem: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    grace: int = 300  # seconds from Slurm's warning to the end
    setup: tuple[str, ...] = ()  # lines of shell before the worker


def slurm_script(command: WorkerCommand, options: SlurmOptions, folder: Path) -> str:
    """The script for ``sbatch``; workers run in ``folder``, so that relative paths mean what they mean there.

    Raises UserError.
    """
    _check(options)
    _check_places(command)
    for text in (str(folder), os.path.dirname(sys.executable)):
        check_printable(text, "the folder")
    directives = [f"#SBATCH --{each}" for each in _directives(command, options)]
    lines = [
        "#!/bin/bash",
        f"# {options.workers} workers of one queue: each takes the next free unit. Its index is only its name.",
        *directives,
        "",
        f"cd -- {shlex.quote(str(folder))} || exit",
        f'export PATH={shlex.quote(os.path.dirname(sys.executable))}:"$PATH"',
        "run_worker() {",
        *(f"  {line}" for line in options.setup),
        f"  exec {shlex.join(command.words(command.config))}",
        "}",
        f"patience={max(1, int(options.grace * PATIENCE))} # seconds that a worker has to finish its unit",
    ]
    return "\n".join(lines) + "\n" + BODY


def _directives(command: WorkerCommand, options: SlurmOptions) -> list[str]:
    gpus = command.gpus(options.gpus)
    at_a_time = f"%{options.at_a_time}" if options.at_a_time else ""
    chosen = {
        "gpus-per-node": gpus or None,
        "cpus-per-task": options.cpus,
        "mem": options.mem,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
    }
    return [
        f"job-name={command.name}",
        f"array=0-{options.workers - 1}{at_a_time}",
        "nodes=1",
        "ntasks=1",
        *(f"{name}={value}" for name, value in chosen.items() if value is not None),
        "requeue",
        f"signal=B:TERM@{options.grace}",
        "open-mode=append",
        f"output={command.name}-%A_%a.log",
    ]


def _check(options: SlurmOptions) -> None:
    check_form("--mem", options.mem, r"\d+[KMGT]?", "200G")
    check_form("--partition", options.partition, r"[\w.+-]+(,[\w.+-]+)*", "gpu")
    check_form("--account", options.account, r"[\w.@+-]+", "team-a")
    for line in options.setup:
        check_printable(line, "--setup")
    if options.time is not None and _seconds(options.time) < 2 * options.grace:
        raise UserError(
            f"--time {options.time}: the warning comes {options.grace} s before the end (--grace), so that hardly a "
            "unit would be done between two starts; ask for at least twice as much"
        )


def _seconds(time: str) -> int:
    """Seconds of a time as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Raises UserError."""
    match = TIME.fullmatch(time)
    if match is None:
        raise UserError(
            f"--time: {time!r}: expected a time such as 12:00:00 (hours:minutes:seconds) or 2-00 (days-hours)"
        )
    first, second, third = (int(match[name] or 0) for name in ("first", "second", "third"))
    if match["days"] is not None:
        return ((int(match["days"]) * 24 + first) * 60 + second) * 60 + third
    return (first * 60 + second) * 60 + third if match["third"] is not None else first * 60 + second


def _check_places(command: WorkerCommand) -> None:
    for key, path in command.written().items():
        if any(Path(path).absolute().is_relative_to(each) for each in TEMPORARY):
            logger.warning(
                "%s: %s: as a rule each node has such a folder of its own, and every worker would do all of the work; "
                "use a folder that all nodes share%s",
                key,
                path,
                ", or an object store" if key == "output.path" else "",
            )
