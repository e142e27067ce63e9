"""Options of all commands that start a fleet: what its workers do, how many there are, and what each needs."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from teacher_cache.command import config_argument, set_option

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
MOST_WORKERS = 100_000  # indexes of a job of Kubernetes with a limit for each


def fleet_options(*parts: str) -> Callable[[Decorated], Decorated]:
    """Add the configuration, ``--set``, ``--part`` (of these, by default the first), ``--workers`` and ``--gpus``."""
    options = (
        config_argument,
        set_option,
        click.option("--part", type=click.Choice(parts), default=parts[0], help="What the workers do."),
        click.option("--workers", type=click.IntRange(1, MOST_WORKERS), required=True, help="Workers of the fleet."),
        click.option(
            "--gpus",
            type=click.IntRange(0, 1024),
            help="GPUs of a worker. Default: engine.tensor_parallel; with engine.kind: transformers 1, without an "
            "engine or on CPUs 0.",
        ),
    )

    def add(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return add
