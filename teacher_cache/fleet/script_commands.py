"""Commands that print what starts a fleet: a Slurm script, a Kubernetes manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from teacher_cache.command import json_option
from teacher_cache.fleet.fleet_options import MOST_WORKERS, fleet_options
from teacher_cache.program import Command

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _script_options(command: Decorated) -> Decorated:
    """Options that both have."""
    grace = click.option(
        "--grace",
        type=click.IntRange(30, 86_400),
        default=300,
        help="Seconds that a worker has to finish its unit when its node or its time is taken away.",
    )
    cpus = click.option("--cpus", type=click.IntRange(1, 4096), help="CPU cores of a worker.")
    return fleet_options("run", "generate", "curate")(cpus(grace(command)))


@click.command(
    cls=Command,
    examples=(
        "teacher-cache sbatch configs/one-node-cache.yaml --workers 16 --time 12:00:00 --partition gpu",
        "teacher-cache sbatch configs/one-node-generate.yaml --part generate --workers 64 --at-a-time 8",
    ),
)
@_script_options
@click.option("--at-a-time", type=click.IntRange(1, MOST_WORKERS), help="Workers that run at a time. Default: all.")
@click.option("--mem", metavar="SIZE", help="Memory of a worker, such as 200G.")
@click.option("--time", metavar="TIME", help="Limit of a worker, such as 12:00:00; it goes on in a new start.")
@click.option("--partition", help="Partition of the cluster, or several, with commas.")
@click.option("--account", help="Account that is charged.")
@click.option("--setup", multiple=True, metavar="LINE", help="Line of shell before the worker starts. Repeatable.")
@json_option
def sbatch(config: str, overrides: tuple[str, ...], part: str, as_json: bool, **chosen: Any) -> None:
    """Print a Slurm script: an array of workers that share the units, each requeued until all are done."""
    from teacher_cache.fleet.slurm_script import SlurmOptions, slurm_script
    from teacher_cache.fleet.worker_command import worker_command

    script = slurm_script(worker_command(part, config, overrides), SlurmOptions(**chosen), Path.cwd())
    click.echo(json.dumps({"script": script}, indent=1) if as_json else script, nl=as_json)


@click.command(
    cls=Command,
    examples=(
        "teacher-cache k8s configs/four-nodes-s3-cache.yaml --workers 4 --image registry.example.org/distil:1 "
        "--volume models:/models:ro --volume data:/data:ro --secret s3-credentials",
        "teacher-cache k8s configs/one-node-generate.yaml --part generate --workers 8 "
        "--image registry.example.org/distil:1 --service-account writer --json",
    ),
)
@_script_options
@click.option("--image", required=True, help="Image of the workers, which has this package.")
@click.option("--namespace", help="Namespace of the job.")
@click.option(
    "--volume",
    "volumes",
    multiple=True,
    metavar="CLAIM:FOLDER[:ro]",
    help="Persistent volume claim, and where the workers have it. Repeatable.",
)
@click.option("--secret", "secrets", multiple=True, help="Secret whose entries are environment variables. Repeatable.")
@click.option("--service-account", help="Service account of the workers.")
@click.option("--mem", metavar="SIZE", help="Memory of a worker, such as 200Gi.")
@json_option
def k8s(config: str, overrides: tuple[str, ...], part: str, as_json: bool, **chosen: Any) -> None:
    """Print a Kubernetes manifest: a job of workers that share the units, replaced when their nodes go."""
    from teacher_cache.fleet.kubernetes_job import KubernetesOptions, as_list, as_yaml, kubernetes_manifest
    from teacher_cache.fleet.worker_command import worker_command

    manifest = kubernetes_manifest(worker_command(part, config, overrides), KubernetesOptions(**chosen))
    click.echo(json.dumps(as_list(manifest), indent=1) if as_json else as_yaml(manifest), nl=as_json)
