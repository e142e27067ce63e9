"""Commands that list, search and describe caches."""

import json
import re
from typing import Any

import click

from schemas.cache_config import captured_signals
from schemas.catalog_file import Catalog
from schemas.errors import UserError
from teacher_cache.command import MOST, json_option, new_table, print_table, progress
from teacher_cache.program import Command

depth_option = click.option(
    "--depth", type=click.IntRange(1, 8), default=3, help="Levels of folders below URL to search."
)


@click.command(
    cls=Command,
    examples=(
        "cache-tools catalog s3://bucket/caches",
        "cache-tools catalog /data/caches --dry-run --json",
    ),
)
@click.argument("url")
@depth_option
@click.option("--dry-run", is_flag=True, help="Write nothing.")
@json_option
def catalog(url: str, depth: int, dry_run: bool, as_json: bool) -> None:
    """List the caches below URL, and write the list there: catalog.json, and catalog.html for people.

    Only manifests and signatures are read. Unreadable caches are listed with the reason. Links to folders are not
    followed.
    """
    from tools.finding.catalog import scan, update

    with progress("reading manifests") as advance:
        found, written = (scan(url, depth, advance), []) if dry_run else update(url, depth, advance)
    if as_json:
        click.echo(found.model_dump_json(indent=1))
        return
    if found.caches:
        _table(found)
    for problem in found.problems:
        click.echo(f"{problem.path}: {problem.reason}")
    if found.left_out:
        click.echo(f"folders skipped for unusual characters in their names: {found.left_out}")
    click.echo(f"{len(found.caches)} caches, {len(found.problems)} that cannot be read")
    for where in written:
        click.echo(f"wrote {where}")


@click.command(
    cls=Command,
    examples=(
        "cache-tools search s3://bucket/caches --tokenizer runs/demo/teacher --signal hidden",
        "cache-tools search /data/caches --scan --min-tokens 1000000",
    ),
)
@click.argument("url")
@click.option("--teacher", help="Part of the teacher's name, or first digits of its fingerprint.")
@click.option("--tokenizer", help="First digits of the tokenizer's fingerprint, or a folder with your student's.")
@click.option("--licence", help="Part of the licence.")
@click.option("--owner", help="Part of the owner.")
@click.option(
    "--signal",
    "signals",
    multiple=True,
    type=click.Choice(captured_signals()),
    help="Signal that must be stored. Repeatable.",
)
@click.option("--min-tokens", type=click.IntRange(0, MOST), default=0, help="Minimum number of tokens.")
@click.option("--signed-by", metavar="KEY", help="Public key, 64 hex digits, that must have signed.")
@click.option("--scan", "rescan", is_flag=True, help="Read the caches' manifests even if there is a catalogue.")
@depth_option
@json_option
def search(
    url: str,
    teacher: str | None,
    tokenizer: str | None,
    licence: str | None,
    owner: str | None,
    signals: tuple[str, ...],
    min_tokens: int,
    signed_by: str | None,
    rescan: bool,
    depth: int,
    as_json: bool,
) -> None:
    """Find caches below URL in its catalogue, or, without one, by reading each cache's manifest.

    A catalogue is only as trustworthy as its author, also about signatures. Pull with the digest that is shown: files,
    and signatures on request, are then verified.
    """
    from tools.finding.catalog import read, scan
    from tools.finding.search import Wanted, summary, tokenizer_fingerprint
    from tools.finding.words import pull_command

    if signed_by is not None and not re.fullmatch("[0-9a-f]{64}", signed_by):
        raise UserError(f"--signed-by {signed_by}: expected a public key: 64 hex digits, lower case")
    wanted = Wanted(
        teacher=teacher,
        tokenizer=None if tokenizer is None else tokenizer_fingerprint(tokenizer),
        licence=licence,
        owner=owner,
        signals=signals,
        min_tokens=min_tokens,
        signed_by=signed_by,
    )
    listed = None if rescan else read(url)
    found = listed
    if found is None:
        with progress("reading manifests") as advance:
            found = scan(url, depth, advance)
    matches = [entry for entry in found.caches if wanted.fits(entry)]
    urls = [f"{url.rstrip('/')}/{entry.path}" for entry in matches]
    if as_json:
        rows = [{"url": where, **entry.model_dump(mode="json")} for where, entry in zip(urls, matches, strict=True)]
        facts: dict[str, Any] = {
            "source": "scan" if listed is None else "catalog",
            "written_at": found.written_at.isoformat(),
            "caches": len(found.caches),
            "problems": len(found.problems),
            "matches": rows,
        }
        click.echo(json.dumps(facts, indent=1))
        return
    source = "as of now" if listed is None else f"by the catalogue of {found.written_at:%Y-%m-%d %H:%M}"
    if not matches:
        click.echo(f"no cache matches; {source} there are:\n{summary(found)}")
        return
    _table(found.model_copy(update={"caches": matches}))
    click.echo(f"{len(matches)} of {len(found.caches)} caches, {source}; to fetch one:")
    for where, entry in zip(urls, matches, strict=True):
        click.echo(pull_command(where, entry.manifest_sha256 if entry.complete else None))


@click.command(
    cls=Command,
    examples=(
        "cache-tools card runs/demo/cache",
        "cache-tools card runs/demo/cache --write",
    ),
)
@click.argument("url")
@click.option("--write", "put", is_flag=True, help="Write the card into the cache, as CACHE_CARD.md.")
@click.option("--samples", type=click.IntRange(0, MOST), default=32, help="Samples to compute statistics from.")
@json_option
def card(url: str, put: bool, samples: int, as_json: bool) -> None:
    """Describe a cache in Markdown, with a header like that of model cards."""
    from tools.finding.card import describe, write_card

    with progress("reading samples") as advance:
        text = describe(url, samples, advance)
    where = write_card(url, text) if put else None
    if as_json:
        click.echo(json.dumps({"card": text, "written": where}, indent=1))
    elif where is not None:
        click.echo(f"wrote {where}")
    else:
        click.echo(text, nl=False)


def _table(found: Catalog) -> None:
    from rich.filesize import decimal

    titles = ("cache", "teacher", "tokenizer", "tokens", "size", "signals", "licence", "signed")
    table = new_table(*titles, box=None, padding=(0, 2, 0, 0))
    for entry in found.caches:
        signers = ", ".join(f"{one.signer} ({one.public_key[:8]}…)" for one in entry.signatures)
        table.add_row(
            entry.path if entry.complete else f"{entry.path} (not complete)",
            entry.teacher.name,
            entry.tokenizer.fingerprint[:8],
            f"{entry.tokens:,}",
            decimal(entry.bytes),
            ", ".join(entry.capture),
            entry.licence,
            signers,
        )
    print_table(table)
