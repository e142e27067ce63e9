"""``cache-tools``: look at caches, prove that they are whole, share them, make new ones of them."""

import click

from teacher_cache.command import configure_logging
from teacher_cache.program import STATUSES, Program
from tools.commands.bridge_commands import export, import_cache
from tools.commands.checking_commands import verify
from tools.commands.finding_commands import card, catalog, search
from tools.commands.looking_commands import compare, inspect, report, stats
from tools.commands.making_commands import merge, prune, repack
from tools.commands.sharing_commands import pull, push, split, subset
from tools.commands.trust_commands import keygen, sign, trust


@click.group(
    cls=Program, epilog=STATUSES, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.option("--verbose", is_flag=True, help="Log details, and what other libraries warn of.")
def main(verbose: bool) -> None:
    """Tools for people who share caches. URL is a folder or any fsspec URL (s3://…)."""
    configure_logging(verbose)


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
)
for command in COMMANDS:
    main.add_command(command)
