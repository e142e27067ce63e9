"""The command that verifies a cache."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from teacher_cache.command import MOST, json_option, new_table, print_table, progress
from teacher_cache.program import Command
from tools.commands.trust_commands import trust_options

if TYPE_CHECKING:
    from tools.checking.rescore import Rescored
    from tools.checking.verify import Report


@click.command(
    cls=Command,
    examples=(
        "cache-tools verify runs/demo/cache",
        "cache-tools verify s3://bucket/caches/demo --teacher runs/teacher --require-signature alice",
    ),
)
@click.argument("url")
@click.option("--quick", is_flag=True, help="Only the manifest, marks, indexes, tables and file sizes.")
@trust_options
@click.option("--teacher", metavar="PATH", help="Also rescore some samples with this teacher, and compare.")
@click.option("--samples", type=click.IntRange(1, MOST), default=20, help="Samples to rescore.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Seed of their choice.")
@click.option("--dtype", help="Data type the teacher computes in; default: the manifest's.")
@click.option("--device", default="auto", help="Device the teacher runs on: auto, cpu, cuda, cuda:1, …")
@json_option
def verify(
    url: str,
    quick: bool,
    required: tuple[str, ...],
    trusted_keys: Path | None,
    teacher: str | None,
    samples: int,
    seed: int,
    dtype: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Check a cache and list every problem.

    With --teacher, random samples are rescored if there is no other problem. Stored values may differ by their rounding
    and by the noise of the data type. Larger differences are explained: another teacher, rows shifted by one, or
    another temperature.

    Exit status: 0 no problem, 1 problems found (including a required signature that is missing or wrong, and scores
    that are not the teacher's), 2 no cache there, invalid manifest, unknown key, or a teacher that cannot be loaded.
    """
    from tools.checking.verify import verify as check

    checks = []
    if required:
        from tools.trust.sign import trust_check

        checks = [trust_check([key], trusted_keys) for key in required]
    with progress("verifying") as advance:
        report = check(url, quick, advance, checks)
    rescored = None
    if teacher is not None and not report.problems:
        from tools.checking.rescore import rescore

        with progress("loading the teacher, rescoring") as advance:
            rescored = rescore(url, teacher, samples, seed, dtype, device, advance)
    if as_json:
        again = {} if rescored is None else {"rescored": vars(rescored)}
        click.echo(json.dumps(vars(report) | again, indent=1))
    else:
        _print_report(report, quick)
        if rescored is not None:
            _print_rescored(rescored)
        elif teacher is not None:
            click.echo("not rescored: fix the problems first")
    sys.exit(1 if report.problems or (rescored is not None and rescored.problems) else 0)


def _print_report(report: "Report", quick: bool) -> None:
    for problem in report.problems:
        click.echo(problem)
    verdict = f"{len(report.problems)} problems" if report.problems else "no problem"
    how = "quickly" if quick else "in full"
    click.echo(f"checked {how}: {report.shards} shards, {report.samples} samples, {report.tokens} tokens: {verdict}")


def _print_rescored(found: "Rescored") -> None:
    columns = ("mean", "median", "p90", "p99", "max")
    table = new_table("rescored", *columns)
    for name, values in found.figures.items():
        if "mean" in values:
            table.add_row(name, *(f"{values[column]:.4g}" for column in columns))
        else:
            for what, value in values.items():
                table.add_row(what, f"{value:.2%}")
    if found.figures:
        print_table(table)
    if not found.same_fingerprint:
        click.echo("the teacher's fingerprint differs from the manifest's: other weights, settings or files")
    for problem in found.problems:
        click.echo(problem)
    nearness = ", ".join(f"{name} {value:.3g}" for name, value in found.distances.items())
    click.echo(f"median distance in nat: {nearness}" if nearness else "nothing was compared")
    click.echo(f"{found.samples} samples, {found.rows} rows rescored in {found.dtype}: {found.verdict}")
