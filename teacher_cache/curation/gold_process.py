"""Compare answers with gold answers by ``math-verify``, as a script that ``limited_script`` runs.

``math-verify`` parses LaTeX and simplifies with SymPy. Hostile text can keep that busy for hours or have it take all
memory, and its own time-outs are alarms of the main thread; so they are off, and the process has limits. It evaluates
no names: of plain text it takes digits and operators only.

This file imports nothing of ours, so that no search path is needed.
"""

import json
import logging
import re
import resource
import sys
import time

MEMORY_BYTES = 3 << 30  # address space of the process
CPU_SECONDS = 2  # for one answer
_PLAIN = re.compile(r"\s*-?\$?[\d,. /]+%?\s*")


def agrees(answer: str, gold: str) -> bool:
    """Whether the last expression in ``answer`` equals the gold answer; False if either holds none."""
    from math_verify import parse, verify

    latex = "$" not in gold and "\\boxed" not in gold and not _PLAIN.fullmatch(gold)
    wanted = parse(f"${gold}$" if latex else gold, parsing_timeout=None)
    return bool(wanted) and bool(verify(wanted, parse(answer, parsing_timeout=None), timeout_seconds=None))


def main() -> None:
    """Compare pairs of an answer and a gold answer."""
    logging.disable()
    agrees("1", "1")  # loads everything
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    print("true", flush=True)
    for line in sys.stdin:
        until = int(time.process_time()) + 1 + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))  # beyond it, SIGXCPU ends the process
        answer, gold = json.loads(line)
        try:
            found = agrees(answer, gold)
        except Exception:  # whatever parsers and SymPy may raise
            found = False
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
