"""Judge replies by ``code_rule`` in a process with limits: what exhausts or crashes the parser costs one reply.

The verdicts on ordinary replies depend on their text and on the version of Python, whose grammar decides. One process
judges a batch. If a reply ends it, the reply's reason is ``limits``, and another process goes on with the next.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence

from schemas.errors import MachineError
from teacher_cache.curation import code_rule
from teacher_cache.curation.code_rule import Verdict

MAX_CHARACTERS = 1 << 20  # of a reply; longer ones are not parsed
_CRASHES = {signal.SIGXCPU, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


def judge_all(replies: Sequence[str]) -> list[Verdict]:
    """The verdict on each reply. Raises MachineError if the process cannot run."""
    verdicts = [
        Verdict("limits", f"{len(reply)} characters") if len(reply) > MAX_CHARACTERS else None for reply in replies
    ]
    waiting = [place for place, verdict in enumerate(verdicts) if verdict is None]
    while waiting:
        found = _judge_some([replies[place] for place in waiting])
        for place, verdict in zip(waiting, found, strict=False):
            verdicts[place] = verdict
        waiting = waiting[len(found) :]
    return [verdict for verdict in verdicts if verdict is not None]


def _judge_some(replies: list[str]) -> list[Verdict]:
    """The verdicts on the first replies, as many as one process can give: all, or up to one that ends it."""
    asked = "".join(json.dumps(reply) + "\n" for reply in replies)
    done = subprocess.run(
        [sys.executable, "-I", code_rule.__file__], input=asked, capture_output=True, text=True, check=False
    )
    ready, *lines = done.stdout.splitlines(keepends=True) or [""]
    found = [Verdict(*json.loads(line)) for line in lines if line.endswith("\n")]
    if len(found) == len(replies):
        return found
    if ready and -done.returncode in _CRASHES:
        return [*found, Verdict("limits", signal.Signals(-done.returncode).name)]
    why = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
    raise MachineError(f"the process that parses code ended after {len(found)} of {len(replies)} replies: {why}")
