"""``teacher-cache`` for PATH, for scripts that call it: forked from the process that has the imports done.

``ForkedProgram`` is the server; the program is this file. It hands its arguments over, passes signals on, and ends as
the forked command does.
"""

import json
import os
import select
import shlex
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

NAME = "teacher-cache"


class ForkedProgram:
    """The program lies in ``folder``; use it as a context manager."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory()  # short: names of sockets are
        self.folder = Path(self._place.name)
        program = self.folder / NAME
        line = shlex.join([sys.executable, "-SE", __file__, str(self.folder / "socket")])
        program.write_text(f'#!/bin/bash\nexec {line} "$@"\n')
        program.chmod(0o755)

    def __enter__(self) -> "ForkedProgram":
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.folder / "socket"))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._place.cleanup()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listening.accept()
            except OSError:  # closed
                return
            threading.Thread(target=_serve, args=(caller,), daemon=True).start()


def _serve(caller: socket.socket) -> None:
    from support.commands import Forked, kill_group

    with caller, caller.makefile("rb", buffering=0) as lines:
        asked = json.loads(lines.readline())
        process = Forked(NAME, *asked["arguments"], env=asked["env"], cwd=Path(asked["cwd"]))
        while process.poll() is None:
            if select.select([caller], [], [], 0.02)[0]:
                numbers = caller.recv(16)
                if not numbers:  # the caller was killed
                    kill_group(process)
                    return
                for number in numbers:
                    process.send_signal(number)
        output, errors = process.communicate()
        caller.sendall(json.dumps([process.returncode, output, errors]).encode())


def _call(place: str, arguments: list[str]) -> int:
    server = socket.socket(socket.AF_UNIX)
    server.connect(place)
    server.sendall(json.dumps({"arguments": arguments, "env": dict(os.environ), "cwd": os.getcwd()}).encode() + b"\n")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda number, _: server.sendall(bytes([number])))
    with server.makefile("rb") as answer:
        status, output, errors = json.loads(answer.read())
    print(output, end="")
    print(errors, end="", file=sys.stderr)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(_call(sys.argv[1], sys.argv[2:]))
