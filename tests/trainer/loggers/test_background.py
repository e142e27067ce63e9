import logging
import threading
from collections.abc import Sequence

import pytest

from trainer.loggers import background
from trainer.loggers.background import Background
from trainer.loggers.run_logger import Line


class Recorded:
    title = "Recorded"

    def __init__(self, broken: str = "", gate: threading.Event | None = None) -> None:
        self.broken, self.gate, self.calls = broken, gate, list[object]()

    def _call(self, name: str, what: object) -> None:
        if self.gate is not None:
            self.gate.wait(20)
        if self.broken == name:
            raise SystemExit(f"{name} is broken")
        self.calls.append(what)

    def open(self) -> None:
        self._call("open", "open")

    def write(self, lines: Sequence[Line]) -> None:
        self._call("write", [line.step for line in lines])

    def close(self, failed: bool) -> None:
        self._call("close", failed)


def line(step: int) -> Line:
    return Line(step, 0.0, {})


def test_lines_arrive_in_order_before_the_end() -> None:
    gate, target = threading.Event(), Recorded()
    target.gate = gate
    logger = Background(target)
    logger.start()
    for step in range(1200):
        logger.add(line(step))
    gate.set()
    logger.close(failed=True)
    assert target.calls[0] == "open"
    assert target.calls[-1] is True
    written = target.calls[1:-1]
    assert [step for part in written for step in part] == list(range(1200))
    assert max(len(part) for part in written) <= 500


@pytest.mark.parametrize("broken", ["open", "write", "close"])
def test_a_logger_that_fails_is_one_warning(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = Background(Recorded(broken))
    with caplog.at_level(logging.WARNING):
        logger.start()
        for step in range(5):
            logger.add(line(step))
        logger.close(failed=False)
        logger.add(line(9))
    assert [each.getMessage() for each in caplog.records] == [
        f"loop.report_to: Recorded gets no more metrics ({broken} is broken); metrics.jsonl has all"
    ]


def test_a_logger_that_hangs_is_left_behind(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MOST_WAITING", 10)
    gate = threading.Event()
    logger = Background(Recorded(gate=gate), closing_seconds=0.05)
    with caplog.at_level(logging.WARNING):
        logger.start()
        for step in range(12):
            logger.add(line(step))
        logger.close(failed=False)
    assert [each.getMessage() for each in caplog.records] == [
        "loop.report_to: Recorded gets no more metrics (10 lines wait); metrics.jsonl has all"
    ]
    gate.set()


def test_one_that_hangs_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    logger = Background(Recorded(gate=gate), closing_seconds=0.05)
    logger.start()
    with caplog.at_level(logging.WARNING):
        logger.close(failed=False)
    assert "not done 0.05 s after the end" in caplog.text
    gate.set()


def test_one_that_was_never_started_is_closed() -> None:
    target = Recorded()
    Background(target).close(failed=True)
    assert target.calls == []
