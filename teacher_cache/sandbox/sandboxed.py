"""Whether Python passes given tests; both are run by ``sandbox_script`` in confined processes, a process each time."""

import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from schemas.errors import MachineError, UserError
from teacher_cache.sandbox.confinement import NOT_ISOLATED
from teacher_cache.sandbox.sandbox_script import NOT_PLAIN, PASSED, Request, parts

PATIENCE = 30  # seconds of the clock for what may have to wait for a busy machine
ROOT = Path(__file__).parents[2]
START = (
    "import sys; sys.path.insert(0, sys.argv.pop()); from teacher_cache.sandbox.sandbox_script import main; "
    "del sys.path[0]; main()"
)


def passes(code: str, tests: str, isolated: bool, seconds: int, key: str) -> bool:
    """Run ``code`` and then ``tests``; whether both come to their end without an exception, in time.

    isolated: whether it must be kept from the network, files and other processes. seconds: of the CPU; of the clock,
    twice as many. Raises MachineError, naming the setting ``key``, if that is not possible here.
    """
    return _verdict(Request(code, "", "", isolated, seconds, 2 * seconds), tests, key) == PASSED


def function_passes(
    code: str, function: str, tests: str, setup: str, isolated: bool, seconds: int, key: str, at_a_time: int = 1
) -> bool:
    """Run ``tests`` on a function that ``code`` defines; whether they come to their end without an exception, in time.

    The tests run in another process, and the function exchanges plain data with them: numbers, strings, lists, tuples,
    sets and dictionaries. setup: runs before both, in each process, unless it is no Python by itself. seconds: of the
    CPU, for each process; of the clock more, since verdicts must not depend on how busy the machine is. at_a_time: how
    many such calls share it. Else as ``passes``. Raises UserError, too, if the tests give the function anything else.
    """
    wait = PATIENCE + math.ceil(2 * seconds * max(1.0, at_a_time / (os.cpu_count() or 1)))
    verdict = _verdict(Request(code, function, setup, isolated, seconds, wait), tests, key)
    if verdict == NOT_PLAIN:
        raise UserError(f"{key}: tests give {function} an argument that is not plain data; such tests cannot be run")
    return verdict == PASSED


def _verdict(request: Request, tests: str, key: str) -> str:
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [sys.executable, "-I", "-B", "-c", START, str(ROOT)],
            input=parts(request, tests),
            capture_output=True,
            cwd=folder,
            env={},
            start_new_session=True,
            check=False,
        )
    if done.returncode == NOT_ISOLATED:
        raise MachineError(
            f"{key}: this machine has no user namespaces that would keep code from network and files; run elsewhere, "
            "or, in a container that has nothing to lose, set isolation: where_possible"
        )
    return done.stdout.decode().strip()
