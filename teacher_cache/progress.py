"""The one progress bar of a caching run, on stderr."""

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Tokens done, tokens/s, mean entropy and the time left. Prints plain lines where stderr is no terminal."""

    def __init__(self, total_tokens: int) -> None:
        self._console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("caching"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,} of {task.total:,} tokens · {task.fields[rate]} · {task.fields[entropy]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._total = total_tokens
        self._done = 0
        self._task = self._bar.add_task("", total=total_tokens, rate="", entropy="")

    def advance(self, tokens: int, tokens_per_second: float, mean_entropy: float | None) -> None:
        """Note that a unit of ``tokens`` tokens was committed."""
        rate = f"{tokens_per_second:,.0f} tok/s"
        entropy = "" if mean_entropy is None else f"entropy {mean_entropy:.2f} nats"
        self._done += tokens
        if self._console.is_terminal:
            self._bar.update(self._task, advance=tokens, rate=rate, entropy=entropy)
        else:
            left = (self._total - self._done) / tokens_per_second if tokens_per_second else 0
            self._console.print(
                f"caching: {self._done:,} of {self._total:,} tokens · {rate} · {entropy} · {left:.0f} s left",
                highlight=False,
            )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
