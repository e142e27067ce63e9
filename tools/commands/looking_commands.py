"""Commands that show the content of caches."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from teacher_cache.command import MOST, json_option, new_table, output_console, print_table, progress, show
from teacher_cache.program import Command
from teacher_cache.text import one_line

every_option = click.option("--all", "every", is_flag=True, help="Read all samples instead.")
AT_LEAST = "≥ "  # before a lower bound


@click.command(
    cls=Command,
    examples=(
        "cache-tools inspect runs/demo/cache",
        "cache-tools inspect runs/demo/cache --sample KEY --rows 10",
    ),
)
@click.argument("url")
@click.option("--sample", metavar="KEY", help="Show this sample token by token instead.")
@click.option(
    "--rows",
    type=click.IntRange(1, MOST),
    default=40,
    help="Rows of the sample to show, starting with the first that counts.",
)
@json_option
def inspect(url: str, sample: str | None, rows: int, as_json: bool) -> None:
    """Show the content of a cache: teacher, corpus, settings, sizes."""
    from tools.looking.inspect import describe, sample_rows

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
    titles = ("row", "token", "counts", "the teacher's top ids", "probability of the next token")
    table = new_table(*titles, *(names[name] for name in others))
    for row in found:
        guesses = zip(row["best_ids"] or [], row["best_probabilities"] or [], strict=True)
        best = ", ".join(f"{i} {p:.2f}" for i, p in guesses)
        realised = "" if row["next_probability"] is None else f"{row['next_probability']:.4f}"
        cells = ["" if row[name] is None else _cell(name, row[name]) for name in others]
        table.add_row(str(row["row"]), repr(row["token"]), "yes" if row["counts"] else "", best, realised, *cells)
    print_table(table)
    if found[0]["row"]:
        click.echo(f"rows before {found[0]['row']} do not count, and are not shown")


@click.command(
    cls=Command,
    examples=(
        "cache-tools stats runs/demo/cache",
        "cache-tools stats s3://bucket/caches/demo --samples 100 --json",
    ),
)
@click.argument("url")
@click.option("--samples", type=click.IntRange(1, MOST), default=1000, help="Samples to read, evenly spaced.")
@every_option
@json_option
def stats(url: str, samples: int, every: bool, as_json: bool) -> None:
    """Show how certain the teacher is: entropy, top-1 mass, coverage, lengths, perplexity; by mix layer and source."""
    from tools.looking.stats import stats as measure

    with progress("reading") as advance:
        found = measure(url, None if every else samples, advance).summary()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    titles = ("", "samples", "rows", "entropy: mean", "median", "95 %", "support", "top-1", "stored", "length")
    table = new_table(*titles, "perplexity", "decorative", numbers_from=1)
    at_least = "" if found["entropy_is_exact"] else AT_LEAST
    groups = {"all": found["overall"]}
    groups |= {f"layer {name}": values for name, values in found["layers"].items()}
    groups |= {f"source {name}": values for name, values in found["sources"].items()}
    for name, values in groups.items():
        entropy = values["entropy"]
        table.add_row(
            _short(name),
            f"{values['samples']:,}",
            f"{values['rows']:,}",
            *(f"{at_least}{entropy[column]:.3f}" for column in ("mean", "p50", "p95")),
            f"{at_least}{values['effective_support']['mean']:,.1f}",
            f"{values['top1_mass']['mean']:.3f}",
            f"{values['coverage']['mean']:.3f}",
            f"{values['response_length']['mean']:,.1f}",
            f"{values['perplexity']:,.2f}",
            f"{values['decorative_share']:.2%}",
        )
    print_table(table)
    hidden = found["sources_not_shown"]
    click.echo(
        f"{_short(found['teacher'])}, {found['overall']['samples']:,} of {found['samples_in_cache']:,} samples; "
        f"entropy in nats at temperature 1, {_kind(found)}" + (f"; {hidden:,} sources not shown" if hidden else "")
    )


@click.command(
    cls=Command,
    examples=(
        "cache-tools compare runs/small/cache runs/large/cache",
        "cache-tools compare runs/small/cache runs/large/cache --all --json",
    ),
)
@click.argument("a")
@click.argument("b")
@click.option("--samples", type=click.IntRange(1, MOST), default=1000, help="Samples to read, out of those in both.")
@every_option
@json_option
def compare(a: str, b: str, samples: int, every: bool, as_json: bool) -> None:
    """Compare two teachers on the same text: entropy, agreement, divergence."""
    from tools.looking.compare import compare as measure

    with progress("reading") as advance:
        found = measure(a, b, None if every else samples, advance).summary()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    groups = {"all": found["overall"], **found["layers"]}
    table = new_table("", "", *(_short(name) for name in groups), numbers_from=2)
    table.columns[0].no_wrap = True
    for title, teacher, cell in _comparison("" if found["entropy_is_exact"] else AT_LEAST):
        table.add_row(title, teacher, *(cell(values) for values in groups.values()))
    print_table(table)
    click.echo(
        f"A: {_short(found['a']['teacher'])}, B: {_short(found['b']['teacher'])}; {found['overall']['samples']:,} of "
        f"{found['common_samples']:,} samples in both; entropy in nats at temperature 1, "
        f"{_kind(found)}; KL a lower bound"
    )


def _comparison(at_least: str) -> list[tuple[str, str, Callable[[dict[str, Any]], str]]]:
    """Rows of the table: title, teacher, and the cell of a group; ``at_least`` precedes lower bounds."""
    rows: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
        ("samples", "", lambda found: f"{found['samples']:,}"),
        ("rows", "", lambda found: f"{found['rows']:,}"),
    ]
    both: dict[str, Callable[[dict[str, Any]], str]] = {
        "entropy": lambda teacher: f"{at_least}{teacher['entropy']['mean']:.4f}",
        "entropy, at most": lambda teacher: f"{teacher['entropy_at_most']:.4f}",
        "entropy, median": lambda teacher: f"{at_least}{teacher['entropy']['p50']:.4f}",
        "effective support": lambda teacher: f"{at_least}{teacher['effective_support']:,.1f}",
        "top-1 mass": lambda teacher: f"{teacher['top1_mass']:.4f}",
        "stored mass": lambda teacher: f"{teacher['coverage']:.4f}",
        "perplexity of text": lambda teacher: f"{teacher['perplexity']:,.3f}",
        "decorative mass": lambda teacher: f"{teacher['decorative_mass']:.3%}",
    }
    for title, cell in both.items():
        rows.append((title, "A", partial(_of, "a", cell)))
        rows.append(("", "B", partial(_of, "b", cell)))
        if title == "entropy":
            what = "B − A" if not at_least else "B − A of the bounds"
            rows.append(("", what, lambda found: _with_error(found["entropy_b_minus_a"])))
    return [
        *rows,
        ("top-1 agreement", "", lambda found: f"{found['top1_agreement']:.2%}"),
        ("KL(A ‖ B)", "", lambda found: f"{AT_LEAST}{found['kl_a_b']['mean']:.4f}"),
        ("KL(B ‖ A)", "", lambda found: f"{AT_LEAST}{found['kl_b_a']['mean']:.4f}"),
        ("response length", "text", lambda found: f"{found['response_length']['mean']:,.1f}"),
        ("decorative tokens", "text", lambda found: f"{found['decorative_share']:.2%}"),
    ]


def _of(name: str, cell: Callable[[dict[str, Any]], str], found: dict[str, Any]) -> str:
    return cell(found[name])


def _kind(found: dict[str, Any]) -> str:
    return "exact" if found["entropy_is_exact"] else "a lower bound"


def _with_error(difference: dict[str, Any]) -> str:
    error = difference["standard_error"]
    return f"{difference['mean']:+.4f}" + ("" if error is None else f" ± {error:.4f}")


def _cell(name: str, value: Any) -> str:
    """A signal's values at one row, abbreviated for a table."""
    if name == "attention":
        return ", ".join(f"{head['head']} → {head['key']} {head['weight']:.2f}" for head in value)
    if name == "drawn_ids":
        return ", ".join(str(len(set(ids))) for ids in value)
    return ", ".join(f"{norm:.1f}" for norm in (value if isinstance(value, list) else [value]))


@click.command(
    cls=Command,
    examples=(
        "cache-tools report runs/demo/cache report.html",
        "cache-tools report runs/demo/cache report.html --student models/student --tokenizer models/teacher",
    ),
)
@click.argument("url")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--samples", type=click.IntRange(0, MOST), default=12, help="Samples to show, from all mix layers.")
@click.option("--sample", "keys", metavar="KEY", multiple=True, help="Show this sample first. Repeatable.")
@click.option(
    "--tokenizer", metavar="FOLDER", help="The teacher's tokenizer, to decode tokens that the texts do not contain."
)
@click.option(
    "--student", metavar="FOLDER", help="A student with another tokenizer: also show what it would be taught."
)
@click.option("--trust-remote-code", is_flag=True, help="Run the code in the student's folder.")
@json_option
def report(
    url: str,
    out: Path,
    samples: int,
    keys: tuple[str, ...],
    tokenizer: str | None,
    student: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Write an HTML report on a cache: facts, statistics, and samples token by token."""
    from tools.report.page import report as write

    with progress("reading") as advance:
        written = write(url, out, samples, keys, tokenizer, student, trust_remote_code, advance)
    if as_json:
        click.echo(json.dumps(written._asdict(), indent=1))
        return
    left_out = f"; {written.left_out} more did not fit" if written.left_out else ""
    click.echo(f"{written.path}: {written.bytes:,} bytes, {len(written.samples)} samples{left_out}")


def _short(name: str) -> str:
    """A name from a cache, shortened for a table or a line."""
    return one_line(name, 80)


@click.command(
    cls=Command,
    examples=(
        "cache-tools align runs/demo/cache models/student",
        "cache-tools align s3://bucket/caches/demo models/student --samples 1000 --json",
    ),
)
@click.argument("url")
@click.argument("tokenizer")
@click.option("--samples", type=click.IntRange(1, MOST), default=200, help="Samples to read, evenly spaced.")
@every_option
@click.option("--examples", type=click.IntRange(0, 20), default=1, help="Samples to show token by token.")
@click.option("--trust-remote-code", is_flag=True, help="Run the code in the tokenizer's folder.")
@json_option
def align(
    url: str, tokenizer: str, samples: int, every: bool, examples: int, trust_remote_code: bool, as_json: bool
) -> None:
    """Show what share of the tokens of a student with another tokenizer a cache would teach, by kind."""
    from tools.looking.align import KIND_NAMES
    from tools.looking.align import align as measure

    with progress("aligning") as advance:
        found = measure(url, tokenizer, None if every else samples, examples, trust_remote_code, advance).summary()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    learned = max(1, found["learned_student_tokens"])
    table = new_table("a student token that is learned", "tokens", "share", numbers_from=1)
    for kind, name in KIND_NAMES.items():
        count = found["kinds"][kind.name.lower()]
        table.add_row(name, f"{count:,}", f"{count / learned:.1%}")
    crossing = found["crossing"]
    table.add_row("… of those taught: ends after the teacher token", f"{crossing:,}", f"{crossing / learned:.1%}")
    print_table(table)
    shares = ", ".join(f"{arm} {share:.1%}" for arm, share in found["taught"].items())
    click.echo(f"taught of the tokens that are not blank: {shares}")
    click.echo(
        f"{found['student_tokens']:,} student tokens for {found['teacher_tokens']:,} of the teacher, in "
        f"{found['samples']:,} samples ({found['samples_left_out']:,} left out); {found['mapped_mass']:.1%} of the "
        "taught rows' mass is on single tokens of the student, the rest on all others together"
    )
    for example in found["examples"]:
        click.echo("")
        print_tokens(example["tokens"])


COLOURS = {"equal": "green", "border": "cyan", "inside": "yellow", "stop": "magenta"}


def print_tokens(tokens: list[dict[str, Any]]) -> None:
    """Print tokens one after the other between bars, coloured by kind; those that are not taught are dim."""
    from rich.text import Text

    line = Text()
    for token in tokens:
        said = one_line(token["text"].replace("\n", "⏎").replace(" ", "·")) or f"({token['id']})"
        line.append(said, style=COLOURS.get(token["kind"], "dim"))
        line.append("│", style="dim")
    output_console(markup=False, emoji=False, highlight=False).print(line)
