"""Progress of planning and caching, on stderr."""

import logging
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from teacher_cache.token_batch import TokenBatch

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_UPDATES = 0.1
SECONDS_BETWEEN_LINES = 10.0  # log lines within a unit, where there is no bar


def reading(batches: Iterable[TokenBatch]) -> Iterator[TokenBatch]:
    """Yield the batches, showing on a terminal how many tokens have been read."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from batches
        return
    columns = (SpinnerColumn(), TextColumn("reading the corpus: {task.completed:,} tokens{task.fields[rate]}"))
    with RichProgress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, rate="")
        tokens, started = 0, time.monotonic()
        shown = started
        for batch in batches:
            yield batch
            tokens += len(batch.input_ids)
            now = time.monotonic()
            if now - shown >= SECONDS_BETWEEN_UPDATES:
                bar.update(task, completed=tokens, rate=f" · {tokens / (now - started):,.0f} tok/s")
                shown = now


class Progress:
    """Tokens scored, tokens/s, mean entropy and time left: a bar, or log lines if stderr is not a terminal.

    Of a job that is not ``caching``, replies instead of tokens.

    The engine's and the writer's thread may call it concurrently.
    """

    def __init__(self, total_tokens: int, job: str = "caching", things: str = "tokens", rate: str = "tok/s") -> None:
        self._job, self._things, self._rate = job, things, rate
        self._console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn(job),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,} of {task.total:,} " + things + "{task.fields[more]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._total = total_tokens
        self._scored = 0
        self._more = ""
        self._started = self._last_line = time.monotonic()
        self._task = self._bar.add_task("", total=total_tokens, more="")

    def scored(self, tokens: int) -> None:
        """Record that the engine has scored ``tokens`` more tokens."""
        self._scored += tokens
        self._show(is_due=time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES)

    def committed(self, mean_entropy: float | None) -> None:
        """Record that a unit was committed; ``mean_entropy``: of all rows so far, nats, None if unknown."""
        self._more = "" if mean_entropy is None else f" · entropy {mean_entropy:.2f} nats"
        self._show(is_due=True)

    def of_fleet(self, done: int, total: int, more: str) -> None:
        """Record what all workers together have done since the start, of how much; ``more``: said beside it."""
        self._scored, self._total, self._more = done, total, f" · {more}"
        self._bar.update(self._task, total=total)
        self._show(is_due=time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES)

    def _show(self, is_due: bool) -> None:
        rate = self._scored / max(1e-9, time.monotonic() - self._started)
        more = f" · {rate:,.0f} {self._rate}{self._more}"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=self._scored, more=more)
        elif is_due:
            self._last_line = time.monotonic()
            done = f"{self._scored:,} of {self._total:,} {self._things}{more}"
            left = f" · {(self._total - self._scored) / rate:.0f} s left" if rate else ""
            logger.info("%s: %s%s", self._job, done, left)

    def __enter__(self) -> "Progress":
        self._started = self._last_line = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
