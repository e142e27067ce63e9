"""``python -m support.offline_cells ORDER…``: cells of a matrix in a process in which every connection is refused."""

import socket
import sys
from pathlib import Path

TRIED: list[object] = []


def refuse(*arguments: object, **_: object) -> None:
    TRIED.append(arguments)
    raise OSError("no network")


if __name__ == "__main__":
    socket.socket.connect = socket.socket.connect_ex = refuse  # type: ignore[assignment,method-assign]
    socket.getaddrinfo = socket.create_connection = refuse  # type: ignore[assignment]
    from trainer.matrix.cell_process import run_cell

    for order in sys.argv[1:]:
        run_cell(Path(order))
    sys.exit(f"tried: {TRIED}" if TRIED else 0)
