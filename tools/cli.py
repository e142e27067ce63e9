"""``cache-tools``: look at caches, prove that they are whole, share them, make new ones of them."""

import click

from tools.commands import checking, finding, looking


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main() -> None:
    """Tools for people who share caches. URL is a folder or any fsspec URL (s3://…)."""


for command in (looking.inspect, checking.verify, finding.catalog, finding.search, finding.card):
    main.add_command(command)
