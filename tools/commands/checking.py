"""Commands that prove what a cache is."""

import json
import sys
from pathlib import Path

import click

from teacher_cache.command import json_option, progress, user_errors
from tools.commands.trust import trust_options


@click.command()
@click.argument("url")
@click.option("--quick", is_flag=True, help="Only the manifest, marks, indexes, tables and file sizes.")
@trust_options
@json_option
@user_errors
def verify(url: str, quick: bool, required: tuple[str, ...], trusted_keys: Path | None, as_json: bool) -> None:
    """Check a cache and list every problem.

    Exit status: 0 no problem, 1 problems found (a required signature that is missing or wrong is one), 2 no cache
    there, its manifest is not valid, or a key is not known.

    Example: cache-tools verify runs/demo/cache --require-signature alice
    """
    from tools.verify import verify as check

    checks = []
    if required:
        from tools.signing import trust_check

        checks = [trust_check([key], trusted_keys) for key in required]
    with progress("verifying") as advance:
        report = check(url, quick, advance, checks)
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
