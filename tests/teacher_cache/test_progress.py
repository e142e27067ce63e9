"""What a caching run says of itself while it goes on."""

import logging
import time

import pytest
from rich.console import Console

from support.synthetic import token_sample
from teacher_cache import progress as module
from teacher_cache.progress import Progress, reading
from teacher_cache.token_batch import TokenBatch


def test_lines_show_tokens_rate_and_entropy_if_known(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "teacher_cache")
    with Progress(1_000_000) as progress:
        progress.scored(250_000)
        assert caplog.messages == [], "a line every ten seconds is enough"
        progress.committed(None)
        (line,) = caplog.messages
        assert line.startswith("caching: 250,000 of 1,000,000 tokens · ")
        assert "entropy" not in line
        assert " ·  · " not in line
        progress.committed(2.5)
        assert " tok/s · entropy 2.50 nats · " in caplog.messages[-1]


def test_a_long_unit_logs_progress(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "teacher_cache")
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    with Progress(1000) as progress:
        progress.scored(100)
    assert caplog.messages[0].startswith("caching: 100 of 1,000 tokens")


def test_the_bar_moves_while_the_first_unit_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Console", lambda **options: Console(force_terminal=True, **options))
    with Progress(1000) as progress:
        progress.scored(300)
        assert progress._bar.tasks[0].percentage == 30


def test_planning_shows_tokens_read_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = [TokenBatch.of([token_sample(range(250))] * 2) for _ in range(4)]
    assert list(reading(batches)) == batches
    assert capsys.readouterr().err == "", "elsewhere nothing is said"
    monkeypatch.setattr(module, "Console", lambda **options: Console(force_terminal=True, width=80, **options))
    monkeypatch.setattr(module, "SECONDS_BETWEEN_UPDATES", 0.0)
    found = []
    for batch in reading(batches):
        found.append(batch)
        time.sleep(0.15)  # the bar is drawn ten times a second
    assert found == batches
    assert "reading the corpus: 1,500 tokens · " in capsys.readouterr().err
