"""The holder of a lease, as recorded for other processes, and whether it is still running."""

import os
import socket
import sys
import uuid
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from schemas.strict import Strict

RECORD_BYTES = 1024  # size of a record, padded so that rewriting in place never changes it
Text = Annotated[str, Field(max_length=200)]


class Holder(Strict):
    """A process that holds a lease: the content of the lease file."""

    host: Text
    boot: Text  # digest of the boot id; if equal, file locks are visible
    machine: Text  # digest of boot id and PID namespace; if equal, ``pid`` and ``started`` identify the process
    pid: int = Field(ge=0, le=1 << 62)
    started: int = Field(ge=0, le=1 << 62)  # clock ticks since boot; 0: unknown
    token: Text  # fencing token: random, unique to this lease
    command: Text
    since: Text
    task: Text = ""  # what the command was doing, so that a rerun recognises its own leftovers
    beat: int = Field(0, ge=0)  # the heartbeat's counter

    def to_bytes(self) -> bytes:
        """One line of JSON, padded with spaces."""
        return self.model_dump_json().encode().ljust(RECORD_BYTES - 1)[: RECORD_BYTES - 1] + b"\n"

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, where this process can look up its PID."""
        return self.machine == _machine()[1]

    @property
    def shares_locks(self) -> bool:
        """Whether this process is certain to see its file locks."""
        return self.boot == _machine()[0]

    @property
    def has_ended(self) -> bool:
        """Whether it is known to have ended; unknown, so False, on another machine."""
        return self.is_here and not is_alive(self.pid, self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command}, since {self.since})"

    @property
    def advice(self) -> str:
        """What the user can do about it."""
        stopped = self.is_here and _state(self.pid) == "T"
        wake = f"it is stopped: resume it with `kill -CONT {self.pid}`" if stopped else "wait for its end"
        return (
            f"{wake}, or end it with `kill -9 {self.pid}`{'' if self.is_here else f' on {self.host}'}; then run again"
        )


def this_process(command: str, token: str, task: str = "") -> Holder:
    """This process as a holder."""
    pid = os.getpid()
    return Holder(
        host=socket.gethostname()[:200] or "localhost",
        boot=_machine()[0],
        machine=_machine()[1],
        pid=pid,
        started=started_at(pid),
        token=token,
        command=command[:200],
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        task=task,
    )


def parse_holder(data: bytes) -> Holder | None:
    """Parse a record; None if it is invalid."""
    try:
        return Holder.model_validate_json(data[:RECORD_BYTES].strip())
    except ValidationError:
        return None


@cache
def _machine() -> tuple[str, str]:
    """Digests of the boot id (scope of file locks), and of boot id and PID namespace (scope of PIDs)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, namespace = str(uuid.getnode()), sys.platform
    digests = [sha256(text.encode()).hexdigest()[:16] for text in (boot, boot + namespace)]
    return digests[0], digests[1]


def is_alive(pid: int, started: int) -> bool:
    """Whether a process of this machine is alive; a stopped one is, a zombie is not."""
    if sys.platform == "linux":
        return started_at(pid) == started != 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def started_at(pid: int) -> int:
    """Start time of a process of this machine, in ticks since boot; 0 if it has ended or is unknown."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else 0


def _state(pid: int) -> str:
    fields = _stat(pid)
    return fields[0] if fields else ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the process name, which may contain anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
