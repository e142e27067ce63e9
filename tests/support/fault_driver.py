"""Runs a command again and again, each time with another call on its files failing; started with ``faults.c`` loaded.

    fault_driver.py MODULE OUTPUT START COUNTER JOBS ARGUMENT…

JOBS is a JSON list of [number of the call, errno]. Before each run OUTPUT is made like START. Prints a JSON line a run.
Processes are forked, so that imports are done once.
"""

import json
import os
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path


def main() -> None:
    module, output, start, counter, jobs, *arguments = sys.argv[1:]
    for name in (module, *filter(None, os.environ.get("FAULT_IMPORTS", "").split(","))):
        import_module(name)
    for call, number in json.loads(jobs):
        shutil.rmtree(output, ignore_errors=True)
        if Path(start).exists():
            shutil.copytree(start, output)
        Path(counter).write_bytes(bytes(8))
        with tempfile.TemporaryDirectory() as told:
            child = os.fork()
            if child == 0:
                run(module, arguments, told, {"UNDER": output, "COUNTER": counter, "NTH": call, "ERRNO": number})
            _, status = os.waitpid(child, 0)
            stderr = (Path(told) / "stderr").read_text()
        calls = int.from_bytes(Path(counter).read_bytes(), "little")
        left = sorted(path.name for path in Path(output).glob("*"))
        code = os.waitstatus_to_exitcode(status)
        print(
            json.dumps({"call": call, "errno": number, "calls": calls, "code": code, "stderr": stderr, "left": left}),
            flush=True,
        )
        kept = Path(f"{output}-{call}-{number}")
        if Path(output).exists():
            os.rename(output, kept)


def run(module: str, arguments: list[str], told: str, faults: dict[str, object]) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{told}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.update({f"FAULT_{name}": str(value) for name, value in faults.items()})
    sys.argv = [module, *arguments]
    code = 1
    try:
        import_module(module).main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
