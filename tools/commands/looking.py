"""Commands that look into a cache."""

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from teacher_cache.command import json_option, show, user_errors


@click.command()
@click.argument("url")
@click.option("--sample", metavar="KEY", help="Show this sample token by token instead.")
@click.option("--rows", type=click.IntRange(min=1), default=40, help="Rows of the sample to show.")
@json_option
@user_errors
def inspect(url: str, sample: str | None, rows: int, as_json: bool) -> None:
    """Say what a cache holds: teacher, corpus, settings, sizes.

    Example: cache-tools inspect runs/demo/cache
    """
    from tools.inspect import describe, sample_rows

    if sample is None:
        show(describe(url), as_json)
        return
    found = sample_rows(url, sample, rows)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    names = {
        "hidden_norms": "hidden norms",
        "final_norm": "final norm",
        "attention": "head → strongest key",
        "drawn_ids": "distinct draws",
    }
    others = [name for name in names if name in found[0]]
    titles = ("row", "token", "counts", "the teacher's best next ids", "probability of what came next")
    table = Table(*titles, *(names[name] for name in others))
    for row in found:
        guesses = zip(row["best_ids"] or [], row["best_probabilities"] or [], strict=True)
        best = ", ".join(f"{i} {p:.2f}" for i, p in guesses)
        realised = "" if row["next_probability"] is None else f"{row['next_probability']:.4f}"
        cells = ["" if row[name] is None else _cell(name, row[name]) for name in others]
        table.add_row(str(row["row"]), repr(row["token"]), "yes" if row["counts"] else "", best, realised, *cells)
    Console(markup=False).print(table)


def _cell(name: str, value: Any) -> str:
    """What a signal holds at a row, short enough for a table."""
    if name == "attention":
        return ", ".join(f"{head['head']} → {head['key']} {head['weight']:.2f}" for head in value)
    if name == "drawn_ids":
        return ", ".join(str(len(set(ids))) for ids in value)
    return ", ".join(f"{norm:.1f}" for norm in (value if isinstance(value, list) else [value]))
