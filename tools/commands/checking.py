"""Commands that prove what a cache is."""

import json
import sys

import click

from teacher_cache.command import json_option, progress, user_errors


@click.command()
@click.argument("url")
@click.option("--quick", is_flag=True, help="Only the manifest, marks, indexes, tables and file sizes.")
@json_option
@user_errors
def verify(url: str, quick: bool, as_json: bool) -> None:
    """Check a cache and list every problem.

    Exit status: 0 no problem, 1 problems found, 2 no cache there or its manifest is not valid.

    Example: cache-tools verify runs/demo/cache
    """
    from tools.verify import verify as check

    with progress("verifying") as advance:
        report = check(url, quick, advance)
    if as_json:
        click.echo(json.dumps(vars(report), indent=1))
    else:
        for problem in report.problems:
            click.echo(problem)
        verdict = f"{len(report.problems)} problems" if report.problems else "no problem"
        how = "quickly" if quick else "in full"
        click.echo(
            f"checked {how}: {report.shards} shards, {report.samples} samples, {report.tokens} tokens: {verdict}"
        )
    sys.exit(1 if report.problems else 0)
