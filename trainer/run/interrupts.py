"""SIGTERM, SIGHUP and Ctrl-C ask a run to stop after the step in hand; a second one stops it at once."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class StopRequest:
    """``signal_number`` is None until a signal arrived."""

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block these signals set the request; the previous handlers return afterwards.

    SIGHUP stays ignored where it is (nohup). Use it in the main thread, where Python delivers signals.
    """
    request = StopRequest()

    def handler(number: int, frame: FrameType | None) -> None:
        if request:
            raise KeyboardInterrupt
        request.signal_number = number
        logger.warning("%s: stopping after this step, once more to stop at once", signal.Signals(number).name)

    is_detached = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in SIGNALS if number != signal.SIGHUP or not is_detached]
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in numbers}
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
