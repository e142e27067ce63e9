"""``cache-tools``: look at caches, prove that they are whole, share them, make new ones of them."""

import click

from teacher_cache.program import Program
from tools.commands.bridge_commands import export, import_cache
from tools.commands.checking_commands import verify
from tools.commands.finding_commands import card, catalog, search
from tools.commands.looking_commands import align, compare, inspect, report, stats
from tools.commands.making_commands import merge, prune, repack, upgrade
from tools.commands.sharing_commands import pull, push, split, subset
from tools.commands.trust_commands import keygen, sign, trust


@click.group(
    cls=Program,
    examples=(
        "cache-tools inspect runs/demo/cache",
        "cache-tools verify s3://bucket/caches/demo",
    ),
)
def main() -> None:
    """Tools for people who share caches. URL is a folder or any fsspec URL (s3://…)."""


COMMANDS = (
    inspect,
    verify,
    catalog,
    search,
    card,
    export,
    import_cache,
    merge,
    repack,
    upgrade,
    prune,
    push,
    pull,
    subset,
    split,
    keygen,
    sign,
    trust,
    stats,
    compare,
    report,
    align,
)
for command in COMMANDS:
    main.add_command(command)
