"""Thousands of commands: each is forked from a process that has the imports done, alone or with a fault in it.

``Forker`` starts that process and asks it for a command at a time; it is this file, run as a program. With
``injected.c``, which gcc compiles, calls to the file system fail as on a full or failing disk.
"""

import ctypes
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

MODULES = {
    "teacher-cache": "teacher_cache.teacher_cache_cli",
    "train-student": "trainer.train_student_cli",
    "cache-tools": "tools.cache_tools_cli",
}
FAULTS = {
    "full": (errno.ENOSPC, True),
    "quota": (errno.EDQUOT, True),
    "io": (errno.EIO, False),
    "handles": (errno.EMFILE, False),
    "kill": (0, False),
}


@dataclass(frozen=True)
class Ended:
    """How a command ended; ``calls``: of the kind that the fault can happen to."""

    status: int  # negative: by a signal
    stdout: str
    stderr: str
    calls: int
    seconds: float
    hung: bool


class Forker:
    """Use it as a context manager. ``limits``: of resources, for the process and all it forks."""

    def __init__(self, folder: Path, modules: tuple[str, ...] = tuple(MODULES.values()), faults: bool = False) -> None:
        self._output = folder / "output"
        self._output.mkdir(parents=True, exist_ok=True)
        self._line, self._library = [sys.executable, __file__, *modules], folder / "injected.so"
        self._faults = faults

    def __enter__(self) -> "Forker":
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if self._faults:
            source = Path(__file__).with_name("injected.c")
            subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", self._library, source, "-ldl"], check=True)
            env["LD_PRELOAD"] = str(self._library)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._line, stdin=pipe, stdout=pipe, text=True, env=env)
        assert self._answer(120) == {"ready": True}
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def run(
        self,
        line: list[str],
        folder: Path,
        fault: str = "",
        at: int = -1,
        below: Path | None = None,
        timeout: float = 60,
        env: dict[str, str] | None = None,
        limits: dict[str, int] | None = None,
        stdout: str = "",
    ) -> Ended:
        """Run a command in ``folder``; the ``fault`` hits call number ``at`` on files of ``below``, or none is armed.

        ``limits``: of resources, such as RLIMIT_NOFILE, by name. ``stdout``: a device, or "gone": no reader.
        """
        asked = {
            "line": line, "folder": str(folder), "output": str(self._output), "timeout": timeout, "fault": fault,
            "at": at, "below": str(below or folder), "env": env or {}, "limits": limits or {}, "stdout": stdout,
        }  # fmt: skip
        assert self._process.stdin is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        found = self._answer(timeout + 60)
        texts = [(self._output / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        return Ended(found["status"], *texts, found["calls"], found["seconds"], found["hung"])

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        assert ready, "the fork server does not answer"
        return json.loads(self._process.stdout.readline())


def _serve(modules: list[str]) -> None:
    for name in modules:
        import_module(name)
    if "trainer.train_student_cli" in modules:
        import_module("support.preloaded")
    library = ctypes.CDLL(None) if "LD_PRELOAD" in os.environ else None
    print(json.dumps({"ready": True}), flush=True)
    for text in sys.stdin:
        print(json.dumps(_answer_to(json.loads(text), library)), flush=True)


def _answer_to(asked: dict[str, Any], library: Any) -> dict[str, Any]:
    started = time.monotonic()
    if (child := os.fork()) == 0:
        _become(asked, library)
    status, hung = _wait(child, started + asked["timeout"])
    calls = library.fault_count() if library is not None else 0
    return {"status": status, "calls": calls, "seconds": time.monotonic() - started, "hung": hung}


def _become(asked: dict[str, Any], library: Any) -> None:
    import resource

    status = 99
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{asked['output']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if asked["stdout"] == "gone":
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
        elif asked["stdout"]:
            os.dup2(os.open(asked["stdout"], os.O_WRONLY), 1)
        os.chdir(asked["folder"])
        os.environ.update(asked["env"])
        for name, limit in asked["limits"].items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        sys.argv = asked["line"]
        main = import_module(MODULES[asked["line"][0]]).main
        if asked["fault"]:
            number, lasting = FAULTS[asked["fault"]]
            library.fault_arm(asked["below"].encode(), asked["at"], number, lasting)
        try:
            main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 98
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                status = 120
    finally:
        os._exit(status)


def _wait(child: int, end: float) -> tuple[int, bool]:
    hung = False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # what it may have left behind
            return os.waitstatus_to_exitcode(status), hung
        if time.monotonic() > end and not hung:
            hung = True
            try:
                os.killpg(child, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.003)


if __name__ == "__main__":
    _serve(sys.argv[1:])
