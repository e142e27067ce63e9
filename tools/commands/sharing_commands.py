"""Commands that transfer caches, and parts of them."""

import json
from pathlib import Path
from typing import Any

import click

from schemas.errors import UserError
from teacher_cache.command import json_option, new_table, print_table, progress
from teacher_cache.program import Command
from tools.commands.selection_options import parse_parts, parse_selection, selection_options
from tools.commands.trust_commands import trust_options

parallel_option = click.option("--parallel", type=click.IntRange(1, 256), default=8, help="Concurrent transfers.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what would be sent.")


@click.command(
    cls=Command,
    examples=(
        "cache-tools push runs/demo/cache s3://bucket/caches/demo",
        "cache-tools push runs/demo/cache hf://datasets/team/demo --dry-run",
    ),
)
@click.argument("source")
@click.argument("target")
@parallel_option
@dry_run_option
@click.option("--public", is_flag=True, help="hf://: create a new repository that everyone can read. [private]")
@click.option("--replace", is_flag=True, help="hf://: replace another cache there; earlier revisions keep it.")
@json_option
def push(source: str, target: str, parallel: int, dry_run: bool, public: bool, replace: bool, as_json: bool) -> None:
    """Copy a complete cache to another place, with its signatures, its manifest last.

    Every file is checked in transit. After an interruption run it again: files that have arrived are not sent again.
    A repository of the Hugging Face Hub (hf://datasets/OWNER/NAME) also gets the cache's card.
    """
    from teacher_cache.hub import HUB
    from tools.sharing.hub_push import push_to_hub
    from tools.sharing.push import copy_cache

    if (public or replace) and not target.startswith(HUB):
        raise UserError(
            f"--{'public' if public else 'replace'}: {target}: is not a repository of the Hub; leave it out"
        )
    with progress("sending") as advance:
        if target.startswith(HUB):
            report = push_to_hub(source, target, not public, replace, parallel, dry_run, advance)
        else:
            report = copy_cache(source, target, parallel, dry_run, advance=advance)
    show_report(report, as_json)


@click.command(
    cls=Command,
    examples=(
        "cache-tools pull s3://bucket/caches/demo data/demo --require-signature alice",
        "cache-tools pull s3://bucket/caches/demo data/small --signals logits --sample 1%",
    ),
)
@click.argument("url")
@click.argument("folder")
@selection_options
@click.option("--digest", metavar="SHA256", help="Required sha256 of the manifest.")
@trust_options
@parallel_option
@dry_run_option
@json_option
def pull(
    url: str,
    folder: str,
    signals: str | None,
    shards: str | None,
    layers: tuple[str, ...],
    sample: str | None,
    digest: str | None,
    required: tuple[str, ...],
    trusted_keys: Path | None,
    parallel: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fetch a complete cache, or a part of it, which is itself a cache.

    Every file is checked in transit. After an interruption run it again: files that have arrived are not fetched again.
    For a part, only the selected samples and signals are fetched.
    """
    from schemas.derivation import Selection
    from teacher_cache.shards.storage import Storage
    from tools.sharing.push import copy_cache
    from tools.sharing.selecting import canonical
    from tools.sharing.subset import choose, open_source, write_subset
    from tools.trust.sign import trust_check

    everything = Selection()
    selection = parse_selection(signals, shards, layers, sample) or everything
    check = trust_check(required, trusted_keys, Storage(folder))
    with progress("fetching") as advance:
        if selection != everything:
            source, manifest = open_source(url, digest, check, whole=True)
            selection = canonical(selection, manifest, url)
        if selection == everything:  # also if all signals are named: a plain copy with signatures
            report = copy_cache(url, folder, parallel, dry_run, digest, check, advance)
        else:
            part = choose(source, manifest, selection, parallel, bound=bool(digest or required))
            report = write_subset(part, folder, parallel, dry_run, advance)
    show_report(report, as_json)


@click.command(
    cls=Command,
    examples=(
        "cache-tools subset runs/demo/cache runs/demo/code --layer code",
        "cache-tools subset s3://bucket/caches/demo data/first --shards 0-99 --signals logits,draws",
    ),
)
@click.argument("source")
@click.argument("target")
@selection_options
@parallel_option
@dry_run_option
@json_option
def subset(
    source: str,
    target: str,
    signals: str | None,
    shards: str | None,
    layers: tuple[str, ...],
    sample: str | None,
    parallel: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a cache from a part of another one; of an unfinished one, from its committed shards."""
    from schemas.derivation import Selection
    from tools.sharing.subset import choose, open_source, write_subset

    selection = parse_selection(signals, shards, layers, sample) or Selection()
    with progress("writing") as advance:
        chosen = choose(*open_source(source), selection, parallel)
        report = write_subset(chosen, target, parallel, dry_run, advance)
    show_report(report, as_json)


@click.command(
    cls=Command,
    examples=(
        "cache-tools split runs/demo/cache runs/demo/parts --parts train=90%,validation=10%",
        "cache-tools split runs/demo/cache runs/demo/layers --by layer",
    ),
)
@click.argument("source")
@click.argument("out")
@click.option("--by", type=click.Choice(["layer"]), help="One part for each layer of the data mix.")
@click.option("--parts", metavar="SHARES", help="Parts with these shares of the samples: train=90%,validation=10%.")
@parallel_option
@dry_run_option
@json_option
def split(
    source: str, out: str, by: str | None, parts: str | None, parallel: int, dry_run: bool, as_json: bool
) -> None:
    """Split a cache into several: OUT/NAME for each part.

    A sample's part depends on its key alone, not on the other samples of the cache.
    """
    from tools.sharing.subset import by_layer, by_share, open_source
    from tools.sharing.subset import split as write_parts

    if (by is None) == (parts is None):
        raise UserError("split: give either --by layer or --parts, for example --parts train=90%,validation=10%")
    shares = None if parts is None else by_share(parse_parts(parts))
    with progress("writing") as advance:
        storage, manifest = open_source(source)
        selections = by_layer(storage, manifest, parallel) if shares is None else shares
        reports = write_parts(storage, manifest, selections, out, parallel, dry_run, advance)
    if as_json:
        click.echo(json.dumps({name: report.as_dict() for name, report in reports.items()}, indent=1))
        return
    for report in reports.values():
        show_report(report, as_json=False)


def show_report(report: Any, as_json: bool) -> None:
    """Print the report of a transfer."""
    found = report.as_dict()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    from rich.filesize import decimal

    table = new_table("what", "would be sent" if report.dry_run else "sent", "already there")
    for kind, sizes in found["by_kind"].items():
        table.add_row(kind, *(decimal(sizes[side]) if sizes[side] else "" for side in ("sent", "skipped")))
    print_table(table)
    sent, skipped = (f"{found[side]['files']} files ({decimal(found[side]['bytes'])})" for side in ("sent", "skipped"))
    verb = "would be sent" if report.dry_run else "sent"
    manifest = f"; manifest {report.manifest_sha256}" if report.manifest_sha256 else ""
    click.echo(f"{report.target}: {sent} {verb}, {skipped} already there{manifest}")
