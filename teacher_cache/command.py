"""Shared by all command lines: overrides of settings, output as JSON or tables, progress bars."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from schemas.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
MOST = 10**12  # upper bound of samples, rows and tokens in options
PIPED_WIDTH = 1 << 16  # characters: tables are not wrapped or truncated where output is piped


def set_option(command: Decorated) -> Decorated:
    """Add ``--set dotted.key=value`` (repeatable), passed as ``overrides``, which override the file."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one setting of the file, e.g. --set output.path=/data/cache. Repeatable.",
    )(command)


config_argument = click.argument("config", type=click.Path(dir_okay=False))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A transient progress bar on stderr if that is a terminal; yields ``advance(done, total)``.

    Before the first call the bar is indeterminate.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, count="")
        yield lambda done, total: bar.update(task, completed=done, total=total, count=f"{done:,} of {total:,}")


def show(values: dict[str, Any], as_json: bool) -> None:
    """Print ``values`` as JSON, or as a table with one line per value (nested ones by dotted names)."""
    if as_json:
        click.echo(json.dumps(values, indent=1))
        return
    table = new_table("what", "value")
    for name, value in _flat(values):
        table.add_row(name, f"{value:,.6g}" if isinstance(value, float) else printable(str(value)))
    print_table(table)


def new_table(*titles: str, numbers_from: int | None = None, **options: Any) -> "Table":
    """A table for ``print_table``; columns from index ``numbers_from`` on are right-aligned."""
    from rich.table import Table

    table = Table(**options)
    for place, title in enumerate(titles):
        is_number = numbers_from is not None and place >= numbers_from
        table.add_column(title, justify="right" if is_number else "left", overflow="fold")
    return table


def output_console(**options: Any) -> "Console":
    """A console on standard output that raises on a closed pipe, where rich exits silently."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise

    return Output(**options)


def print_table(table: "Table") -> None:
    """Print a table, cells verbatim (no markup): wrapped on a terminal, one full line per row where piped."""
    console = output_console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(table)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows
