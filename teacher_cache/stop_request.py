"""SIGTERM, SIGHUP and Ctrl-C as requests to stop: current work is finished; a second signal ends the run at once."""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class StopRequest:
    """True once a signal has arrived, or ``signal_number`` was set."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    @property
    def signal_name(self) -> str | None:
        """Such as "SIGTERM"; None before a request."""
        return None if self.signal_number is None else signal.Signals(self.signal_number).name

    @contextmanager
    def listening(self, in_hand: str, kill: bool = False) -> Iterator["StopRequest"]:
        """Within the block, in the main thread, signals set the request.

        in_hand: the work that is finished first, for the log. The second signal raises KeyboardInterrupt or, with
        ``kill``, terminates the process immediately: for code that may block forever.
        """

        def handler(number: int, _: FrameType | None) -> None:
            if self:
                raise KeyboardInterrupt
            self.signal_number = number
            if kill:
                for each in SIGNALS:
                    if signal.getsignal(each) is handler:
                        signal.signal(each, signal.SIG_DFL)
            logger.warning("%s: finishing %s; send it again to end at once", self.signal_name, in_hand)

        with handling(SIGNALS, handler):
            yield self


@contextmanager
def handling(signals: Sequence[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Within the block ``handler`` handles these signals; those that are ignored (nohup) stay ignored."""
    taken = [number for number in signals if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
