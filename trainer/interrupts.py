"""SIGTERM and Ctrl-C ask a run to stop after the step in hand; a second one stops it at once."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


class StopRequest:
    """``signal_number`` is None until a signal arrived."""

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block SIGTERM and SIGINT set the request; the previous handlers return afterwards.

    Use it in the main thread, where Python delivers signals.
    """
    request = StopRequest()

    def handler(number: int, frame: FrameType | None) -> None:
        if request:
            raise KeyboardInterrupt
        request.signal_number = number
        logger.warning("%s: stopping after this step, once more to stop at once", signal.Signals(number).name)

    before: dict[int, Any] = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def leave_interrupts_to_main(worker: int) -> None:
    """For worker processes: Ctrl-C reaches the whole group, but only the main process acts on it.

    SIGTERM keeps its default: it is how the main process ends its workers when it exits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
