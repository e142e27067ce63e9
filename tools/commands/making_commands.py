"""Commands that make new caches from existing ones, and remove leftovers."""

import json
from pathlib import Path

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
    help="Treatment of samples that an earlier shard also has; `drop` keeps the first.",
)
@json_option
def merge(sources: tuple[str, ...], target: str, duplicates: str, as_json: bool) -> None:
    """Merge caches with the same teacher, tokenizer, capture and codec settings into one.

    Payloads are not rewritten: files become hard links where the disk allows it, or are copied within an object store.
    DST must be empty, or hold the leftovers of an interrupted merge.
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
@click.option(
    "--k", type=click.IntRange(1, MOST), help="Keep at most this many entries per row. Draws from the tail are redrawn."
)
@click.option(
    "--logprobs",
    type=click.Choice(["steps", "bfloat16", "float16", "float32"]),
    help="Store log-probabilities in this form, which must be coarser than the present one.",
)
@click.option(
    "--steps-per-nat", type=click.IntRange(1, 1024), help="Steps of log-probabilities, fewer than at present."
)
@click.option("--zstd-level", type=click.IntRange(1, 19), help="Compress logits and draws at this level.")
@click.option(
    "--recode", is_flag=True, help="Recode token ids with one code table, so that shards need not end where it changes."
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
    """Make a cache of the same samples with other shard sizes, fewer entries per row, or coarser values.

    If neither codec nor K changes, payloads are copied unchanged, and shards end where the code table changes.
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
        "cache-tools upgrade caches/old caches/new --tokenizer models/teacher",
        "cache-tools upgrade caches/old caches/new --tokenizer models/teacher --chat-template own.jinja",
    ),
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--tokenizer", metavar="FOLDER", required=True, help="The teacher's folder; its weights are not needed.")
@click.option(
    "--chat-template",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the chat template, where the corpus had one of its own (`corpus.chat_template`).",
)
@click.option("--trust-remote-code", is_flag=True, help="Run the code in the tokenizer's folder.")
@json_option
def upgrade(
    source: str,
    target: str,
    tokenizer: str,
    chat_template: Path | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Make a cache of an older format fit for students with another tokenizer: its vocabulary, and chats' messages.

    Messages are found in the rendered texts, and proven by rendering them again; chats that cannot be proven are
    counted by reason, and left out for such students. All but tokens and indexes is linked or copied unchanged. The new
    cache has another digest: sign it again.
    """
    from tools.making.upgrade import upgrade as upgrade_cache

    with progress("upgrading") as advance:
        report = upgrade_cache(source, target, tokenizer, chat_template, trust_remote_code, advance)
    show(vars(report), as_json)
    if report.signatures_to_renew and not as_json:
        click.echo(f"{source} is signed, {target} is not: cache-tools sign {target} --key KEY")


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
    """Remove leftovers of killed runs and transfers: files named like a cache's that its manifest does not list.

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
