"""``cache-tools``: look at caches, prove that they are whole, share them, make new ones of them."""

import click

from teacher_cache.command import configure_logging
from teacher_cache.program import STATUSES, Program
from tools.commands import bridges, checking, finding, looking, making, sharing, trust


@click.group(
    cls=Program, epilog=STATUSES, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.option("--verbose", is_flag=True, help="Log details, and what other libraries warn of.")
def main(verbose: bool) -> None:
    """Tools for people who share caches. URL is a folder or any fsspec URL (s3://…)."""
    configure_logging(verbose)


COMMANDS = (
    looking.inspect,
    checking.verify,
    finding.catalog,
    finding.search,
    finding.card,
    bridges.export,
    bridges.import_cache,
    making.merge,
    making.repack,
    making.prune,
    sharing.push,
    sharing.pull,
    sharing.subset,
    sharing.split,
    trust.keygen,
    trust.sign,
    trust.trust,
    looking.stats,
    looking.compare,
    looking.report,
)
for command in COMMANDS:
    main.add_command(command)
