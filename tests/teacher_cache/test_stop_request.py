import os
import signal
import subprocess
import sys

import pytest

from teacher_cache.stop_request import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_requests_a_stop_and_second_interrupts(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest().listening("this step") as request:
        assert not request
        os.kill(os.getpid(), number)
        assert request
        assert request.signal_number == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_a_detached_run_goes_on_when_its_terminal_closes() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().listening("this step") as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_kills_with_kill_set(second: int) -> None:
    code = (
        "import os, signal, sys, time\n"
        "from teacher_cache.stop_request import StopRequest\n"
        "with StopRequest().listening('the current unit', kill=True) as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stop.signal_name == 'SIGTERM'\n"
        f"    os.kill(os.getpid(), {int(second)})\n"
        "    time.sleep(60)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -second
