"""Whether the Python of replies passes given tests: each is run by ``run_python`` in a process of its own."""

import json
import subprocess
import sys
import tempfile

from schemas.errors import MachineError
from teacher_cache.curation import run_python


def passes(code: str, tests: str, isolated: bool, seconds: int, key: str) -> bool:
    """Run ``code`` and then ``tests``; whether both come to their end without an exception, in time.

    isolated: whether it must be kept from the network, files and other processes. seconds: of the CPU; of the clock,
    twice as many. Raises MachineError, naming the
    setting ``key``, if that is not possible here.
    """
    request = json.dumps({"code": code, "tests": tests, "isolated": isolated, "seconds": seconds})
    with tempfile.TemporaryDirectory(prefix="run-python-") as folder:
        done = subprocess.run(
            [sys.executable, "-I", "-B", run_python.__file__],
            input=request,
            capture_output=True,
            text=True,
            cwd=folder,
            env={},
            start_new_session=True,
            check=False,
        )
    if done.returncode == run_python.NOT_ISOLATED:
        raise MachineError(
            f"{key}: this machine has no user namespaces that would keep code from network and files; run elsewhere, "
            "or, in a container that has nothing to lose, set isolation: where_possible"
        )
    return done.stdout.strip() == "true"
