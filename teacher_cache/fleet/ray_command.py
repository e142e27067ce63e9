"""``teacher-cache ray``."""

import signal
import sys
from dataclasses import asdict

import click

from teacher_cache.command import json_option, show
from teacher_cache.fleet.fleet_options import fleet_options
from teacher_cache.program import Command


@click.command(
    cls=Command,
    examples=(
        "teacher-cache ray configs/one-node-cache.yaml --workers 8",
        "teacher-cache ray configs/four-nodes-s3-cache.yaml --address auto --workers 64",
    ),
)
@fleet_options("run", "generate", "curate")
@click.option("--address", help="Ray cluster, as `ray.init` takes it: auto, or HOST:PORT. Default: this machine alone.")
@click.option("--cpus", type=click.FloatRange(0, 1024), default=1.0, help="CPUs of a worker.")
@json_option
def ray(
    config: str,
    overrides: tuple[str, ...],
    part: str,
    address: str | None,
    workers: int,
    cpus: float,
    gpus: int | None,
    as_json: bool,
) -> None:
    """Run, generate or curate with many workers on a Ray cluster; those that die are replaced.

    Workers that do not fit on the cluster wait for nodes that join. On a cluster without GPUs, workers need none.
    """
    from teacher_cache.fleet.ray_fleet import FleetSettings, run_fleet
    from teacher_cache.fleet.worker_command import worker_command

    command = worker_command(part, config, overrides)
    needed = command.gpus(gpus)
    summary = run_fleet(command.settings, FleetSettings(part, workers, address, cpus, needed, gpus is None))
    show(asdict(summary), as_json)
    if summary.stopped_by:
        sys.exit(128 + signal.Signals[summary.stopped_by])
