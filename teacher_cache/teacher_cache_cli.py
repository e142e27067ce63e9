"""``teacher-cache``: plan and run a caching job."""

import json
import signal
import sys
from dataclasses import asdict
from typing import Any

import click

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import load_config
from teacher_cache.command import MOST, config_argument, json_option, progress, set_option, show
from teacher_cache.fleet.ray_command import ray
from teacher_cache.fleet.script_commands import k8s, sbatch
from teacher_cache.program import Program

worker_option = click.option("--worker", metavar="RANK/WORLD", help="Do this worker's share of the units.")
queue_option = click.option(
    "--queue",
    is_flag=True,
    help="Share the work with other processes that have this option: each takes the next unit that is free, and what "
    "a killed one leaves.",
)


@click.group(
    cls=Program,
    examples=(
        "teacher-cache plan configs/demo-cache.yaml --probe 8",
        "teacher-cache run configs/demo-cache.yaml",
    ),
)
def main() -> None:
    """Run the teacher once and keep its per-token signals in a cache that students train from."""


@main.command(
    examples=(
        "teacher-cache plan configs/demo-cache.yaml --dry-run",
        "teacher-cache plan configs/demo-cache.yaml --probe 8 --json",
    )
)
@config_argument
@set_option
@click.option("--dry-run", is_flag=True, help="Check the configuration and read the corpus, but write nothing.")
@click.option(
    "--probe",
    type=click.IntRange(1, MOST),
    metavar="N",
    help="Score N sequences with the teacher to estimate bytes and hours. Writes nothing either.",
)
@json_option
def plan(config: str, overrides: tuple[str, ...], dry_run: bool, probe: int | None, as_json: bool) -> None:
    """Read the corpus and write the plan, without loading the teacher."""
    settings = load_config(CacheConfig, config, overrides)
    if dry_run or probe is not None:
        found = _estimate(settings, probe)
        show(found if as_json else _with_units(found), as_json)
        return
    from teacher_cache.plan import load_or_make_plan
    from teacher_cache.shards.storage import Storage

    manifest = load_or_make_plan(settings, Storage(settings.output.path))
    show({"units": len(manifest.units), **manifest.corpus.counts.model_dump()}, as_json)


def _estimate(settings: CacheConfig, probe: int | None) -> dict[str, Any]:
    from teacher_cache import estimate

    survey = estimate.survey(settings, probe or 1)
    found = {"units": survey.units, **survey.counts.model_dump()}
    if probe is None:
        return found
    with progress("loading the teacher, scoring"):
        return found | {"probe": asdict(estimate.probe(settings, survey))}


def _with_units(found: dict[str, Any]) -> dict[str, Any]:
    """The estimate as a table shows it."""
    if "probe" not in found:
        return found
    units = {"bytes_per_token": "bytes/token", "gigabytes": "GB", "other_settings": "bytes/token of {}"}
    probe = {**found["probe"], "tokens_per_second": f"{found['probe']['tokens_per_second']:,.6g} tokens/s"}
    probe["hours"] = f"{probe['hours']:,.6g} h"
    for name, unit in units.items():
        signals = {setting: _signal_of(setting) for setting in probe[name]}
        probe[name] = {key: f"{size:,.6g} {unit.format(signals[key])}" for key, size in probe[name].items()}
    return found | {"probe": probe}


def _signal_of(setting: str) -> str:
    """The signal whose size a setting changes: ``capture.draws.n=6`` that of the draws, codecs that of the logits."""
    group, _, rest = setting.partition(".")
    return rest.partition(".")[0] if group == "capture" else "logits"


@main.command(
    examples=(
        "teacher-cache preview configs/demo-cache.yaml -n 5",
        "teacher-cache preview configs/demo-cache.yaml --set corpus.max_tokens=128 --tokens 64",
    )
)
@config_argument
@set_option
@click.option("-n", "samples", type=click.IntRange(min=1, max=1000), default=3, help="Sequences that are shown.")
@click.option("--tokens", type=click.IntRange(1, MOST), default=512, help="Tokens of each that are shown.")
@json_option
def preview(config: str, overrides: tuple[str, ...], samples: int, tokens: int, as_json: bool) -> None:
    """Show what the corpus becomes: tokens, and which of them are learned. Reads the beginning of each source."""
    from teacher_cache import preview as previewing

    found = previewing.preview(load_config(CacheConfig, config, overrides), samples)
    if as_json:
        click.echo(json.dumps(previewing.as_dict(found), indent=1))
    else:
        previewing.show(found, tokens)
    if problems := [source.problem for source in found.sources if source.problem is not None]:
        raise UserError(problems[0])


@main.command(
    examples=(
        "teacher-cache run configs/demo-cache.yaml --set capture.logits.k=64 --set capture.draws=null",
        "teacher-cache run configs/four-nodes-s3-cache.yaml --worker 0/4",
    )
)
@config_argument
@set_option
@worker_option
@queue_option
@json_option
def run(config: str, overrides: tuple[str, ...], worker: str | None, queue: bool, as_json: bool) -> None:
    """Plan if there is no plan yet, then score, encode, write and commit every unit that is not committed."""
    from teacher_cache import job

    share = job.parse_worker(worker, queue)
    settings = load_config(CacheConfig, config, overrides)
    summary = job.run(settings, share)
    show(job.summary_dict(summary), as_json)
    if summary.stopped_by:
        sys.exit(128 + signal.Signals[summary.stopped_by])


@main.command(
    examples=(
        "teacher-cache generate configs/demo-generate.yaml --set sampling.samples=4",
        "teacher-cache generate configs/one-node-generate.yaml --queue",
    )
)
@config_argument
@set_option
@worker_option
@queue_option
@click.option("--dry-run", is_flag=True, help="Check the configuration and read the prompts, but write nothing.")
@json_option
def generate(
    config: str, overrides: tuple[str, ...], worker: str | None, queue: bool, dry_run: bool, as_json: bool
) -> None:
    """Have a model reply to prompts, n times each; the replies are a source of a corpus (`format: generated`)."""
    from schemas.generate_config import GenerateConfig
    from teacher_cache import job
    from teacher_cache.generation import generation_job

    share = job.parse_worker(worker, queue)
    settings = load_config(GenerateConfig, config, overrides)
    if dry_run:
        show(generation_job.count_prompts(settings), as_json)
        return
    summary = generation_job.generate(settings, share)
    show(generation_job.generation_dict(summary), as_json)
    if summary.stopped_by:
        sys.exit(128 + signal.Signals[summary.stopped_by])


@main.command(
    examples=(
        "teacher-cache curate configs/pyramid.yaml --workers 8",
        "teacher-cache curate configs/pyramid.yaml --queue",
    )
)
@config_argument
@set_option
@click.option("--workers", type=click.IntRange(1, 1024), default=1, help="Processes; the result does not depend on it.")
@queue_option
@click.option("--dry-run", is_flag=True, help="Check the configuration and read the sources, but write nothing.")
@json_option
def curate(config: str, overrides: tuple[str, ...], workers: int, queue: bool, dry_run: bool, as_json: bool) -> None:
    """Choose records step by step, each that leaves with its reason; a source of a corpus (`format: curated`)."""
    from schemas.curate_config import CurateConfig
    from teacher_cache.curation import curation_job

    if queue and workers > 1:
        raise UserError(f"--workers {workers}: with --queue a command is one worker; start the command several times")
    settings = load_config(CurateConfig, config, overrides)
    found = curation_job.count_records(settings) if dry_run else curation_job.curate(settings, workers, queue)
    show(found if isinstance(found, dict) else asdict(found), as_json)


main.add_command(ray)
main.add_command(sbatch)
main.add_command(k8s)
