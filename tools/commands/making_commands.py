"""Commands that make new caches of old ones, and clean up after others that did not finish."""

import json

import click

from teacher_cache.command import MOST, json_option, progress, show
from teacher_cache.program import Command


@click.command(
    cls=Command,
    examples=(
        "cache-tools merge caches/code caches/text caches/all",
        "cache-tools merge caches/code caches/text caches/all --duplicates refuse",
    ),
)
@click.argument("sources", metavar="SRC...", nargs=-1, required=True)
@click.argument("target", metavar="DST")
@click.option(
    "--duplicates",
    type=click.Choice(["drop", "refuse", "keep"]),
    default="drop",
    help="What becomes of samples that an earlier shard has too; `drop` keeps the first one of each.",
)
@json_option
def merge(sources: tuple[str, ...], target: str, duplicates: str, as_json: bool) -> None:
    """Make one cache of several with the same teacher, tokenizer, capture and codec settings.

    Payloads are not rewritten: files are hard links where a disk allows it, or copied within an object store. DST must
    be empty, or hold the leavings of an interrupted merge.
    """
    from tools.making.merge import merge as merge_caches

    with progress("merging") as advance:
        report = merge_caches(sources, target, duplicates, advance)  # type: ignore[arg-type]
    show(vars(report), as_json)


@click.command(
    cls=Command,
    examples=(
        "cache-tools repack caches/all caches/large-shards --tokens-per-shard 1000000",
        "cache-tools repack caches/all caches/small --k 32 --zstd-level 3",
    ),
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--tokens-per-shard", type=click.IntRange(1, MOST), help="A shard ends when it holds so many tokens.")
@click.option("--k", type=click.IntRange(1, MOST), help="Keep this many entries of each row, or fewer than are stored.")
@click.option(
    "--logprobs",
    type=click.Choice(["steps", "bfloat16", "float16", "float32"]),
    help="Store log-probabilities like this: less exactly than they are stored.",
)
@click.option(
    "--steps-per-nat", type=click.IntRange(1, 1024), help="Steps of log-probabilities, fewer than are stored."
)
@click.option("--zstd-level", type=click.IntRange(1, 19), help="Compress logits and draws at this level.")
@click.option(
    "--recode", is_flag=True, help="Code token ids anew with one code table, so that no shard ends at another."
)
@json_option
def repack(
    source: str,
    target: str,
    tokens_per_shard: int | None,
    k: int | None,
    logprobs: str | None,
    steps_per_nat: int | None,
    zstd_level: int | None,
    recode: bool,
    as_json: bool,
) -> None:
    """Make a cache of the same samples with larger or smaller shards, fewer entries a row, or coarser values.

    Without another codec or K, payloads are copied as they are, and shards end where the code table changes.
    """
    from tools.making.repack import Changes
    from tools.making.repack import repack as repack_cache

    changes = Changes(tokens_per_shard, k, logprobs, steps_per_nat, zstd_level, recode)
    with progress("repacking") as advance:
        report = repack_cache(source, target, changes, advance)
    show(vars(report), as_json)


@click.command(
    cls=Command,
    examples=(
        "cache-tools prune caches/all --dry-run",
        "cache-tools prune s3://bucket/caches/demo",
    ),
)
@click.argument("url")
@click.option("--dry-run", is_flag=True, help="Only list the files.")
@json_option
def prune(url: str, dry_run: bool, as_json: bool) -> None:
    """Remove files of killed runs and transfers: a cache's by name, but not accounted for by its manifest.

    Other files are never touched. An incomplete cache is refused, since a run may be writing to it.
    """
    from tools.making.prune import prune as prune_cache

    found = prune_cache(url, dry_run)
    if as_json:
        click.echo(json.dumps({"removed": not dry_run, "files": found, "bytes": sum(found.values())}, indent=1))
        return
    for name, size in found.items():
        click.echo(f"{size:>14,}  {name}")
    verb = "would be removed" if dry_run else "removed"
    click.echo(f"{len(found)} files of {sum(found.values()):,} bytes {verb}")
