"""``train-student``: build the student's initial weights, train, evaluate."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import get_args

import click

from schemas.cache_config import Dtype
from schemas.load import load_config
from schemas.train_config import DataConfig, GroupSize, TrainConfig, WeightBits
from teacher_cache.command import MOST, config_argument, json_option, progress, set_option, show
from teacher_cache.program import Program

logger = logging.getLogger(__name__)


def is_other_rank() -> bool:
    """Whether this is a rank other than 0; only rank 0 prints."""
    return int(os.environ.get("RANK", "0")) > 0


@click.group(
    cls=Program,
    examples=(
        "train-student init configs/demo-train.yaml",
        "train-student run configs/demo-train.yaml",
    ),
)
def main() -> None:
    """Train a student from a cache of its teacher's signals, without the teacher."""


@main.command(
    examples=(
        "train-student init configs/demo-train.yaml",
        "train-student init configs/demo-train.yaml --set student.from_layers=[0,1,2,28,29] --set output=runs/small",
    )
)
@config_argument
@set_option
@json_option
def init(config: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write the student's initial weights to OUTPUT/student-init, so that training needs no teacher folder."""
    settings = load_config(TrainConfig, config, overrides)
    from trainer.initial_weights import materialise_student, pruned_in
    from trainer.run.owner import only_run_in
    from trainer.run.quiet import quiet_transformers
    from trainer.student.build import load_model_config
    from trainer.student.preflight import check_output

    quiet_transformers()
    check_output(Path(settings.output))
    with only_run_in(settings.output, "train-student init"), progress("writing the student's initial weights"):
        folder = materialise_student(settings)
    model_config = load_model_config(folder, "student", settings.student.trust_remote_code)
    shown = {
        "student": str(folder),
        "architecture": (model_config.architectures or ["?"])[0],
        "layers": model_config.num_hidden_layers,
        "hidden_size": model_config.hidden_size,
        "vocab_size": model_config.vocab_size,
    }
    pruned = None if settings.student.ffn is None else pruned_in(folder)
    if pruned is not None:
        sizes = {**pruned.widths, "parameters": pruned.parameters}
        shown["ffn"] = {name: {"before": before, "after": after} for name, (before, after) in sizes.items()}
    show(shown, as_json)


@main.command(
    examples=(
        "train-student run configs/demo-train.yaml --set loop.max_steps=100",
        "train-student run configs/demo-train.yaml --set data.cache=s3://team/cache --json",
    )
)
@config_argument
@set_option
@json_option
def run(config: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train as CONFIG says, resuming from the newest checkpoint if there is one.

    Ctrl-C, SIGTERM or SIGHUP saves a checkpoint and exits with 130, 143 or 129; the same command resumes.

    On several GPUs:
    torchrun --nproc-per-node 8 --no-python train-student run CONFIG
    """
    settings = load_config(TrainConfig, config, overrides)
    _read_manifests(settings.data)
    from teacher_cache.stop_request import StopRequest
    from trainer.distiller import distill
    from trainer.run.progress_bar import progress_callbacks
    from trainer.student.parallel import leave_together

    if is_other_rank():
        logging.disable(logging.INFO)
    with StopRequest().listening("this step") as stop:
        summary = distill(settings, stop, progress_callbacks())
    interrupted = summary["ended"] == "interrupted"
    if not is_other_rank():
        show(summary, as_json)
        if interrupted:
            click.echo(
                f"stopped at step {summary['steps']} of {summary['planned_steps']}; a checkpoint is saved, "
                "the same command resumes from it",
                err=True,
            )
    leave_together(128 + (stop.signal_number or signal.SIGTERM) if interrupted else 0)


@main.command(
    examples=(
        "train-student rounds configs/demo-rounds.yaml --dry-run",
        "train-student rounds configs/demo-rounds.yaml --set rounds=3",
    )
)
@config_argument
@set_option
@click.option("--dry-run", is_flag=True, help="Check the configuration and show what a round costs; write nothing.")
@json_option
def rounds(config: str, overrides: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Teach the student on its own text: it generates, the teacher scores, it trains; n times, one process each.

    Ctrl-C, SIGTERM or SIGHUP ends the part under way as its own command would; the same command continues.
    """
    from schemas.rounds_config import RoundsConfig
    from trainer.rounds.rounds_run import plan_rounds, run_rounds

    settings = load_config(RoundsConfig, config, overrides)
    if dry_run:
        show(plan_rounds(settings), as_json)
        return
    summary = run_rounds(settings)
    stopped_by = summary.pop("stopped_by")
    show(summary if as_json else summary | {"rounds": {each["number"]: each for each in summary["rounds"]}}, as_json)
    if stopped_by is not None and not summary["complete"]:
        click.echo(f"stopped after {len(summary['rounds'])} rounds; the same command continues", err=True)
        sys.exit(128 + stopped_by)


@main.command(
    examples=(
        "train-student matrix configs/demo-matrix.yaml --dry-run",
        "train-student matrix configs/demo-matrix.yaml --set output=runs/other-matrix",
    )
)
@config_argument
@set_option
@click.option("--dry-run", is_flag=True, help="Check all cells and show which are missing; write nothing.")
@json_option
def matrix(config: str, overrides: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Evaluate models on tasks, one process for each cell, and compare them.

    What is done is kept: the same command runs what is missing. Ctrl-C, SIGTERM or SIGHUP ends the cell under way.
    """
    from schemas.matrix_config import MatrixConfig
    from trainer.matrix.matrix_run import plan_of, run_matrix

    settings = load_config(MatrixConfig, config, overrides)
    if dry_run:
        show(plan_of(settings), as_json)
        return
    summary = run_matrix(settings)
    stopped_by = summary.pop("stopped_by")
    show(summary, as_json)
    if stopped_by is not None and summary["done"] < summary["cells"]:
        click.echo(f"stopped after {summary['done']} cells; the same command continues", err=True)
        sys.exit(128 + stopped_by)


@main.command(
    examples=(
        "train-student report runs/demo/student --out run.html",
        "train-student report runs/demo/student s3://team/other-student --json",
    )
)
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("run-report.html"),
    show_default=True,
    help="The file to write.",
)
@json_option
def report(runs: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Write one HTML page of the runs whose outputs are RUNS, folders or URLs, several on the same axes.

    A run may still be going on, or have been killed.
    """
    from trainer.run_report.run_page import report_runs

    show(report_runs(runs, out), as_json)


@main.command("matrix-cell", hidden=True)
@click.argument("order", type=click.Path(path_type=Path))
def matrix_cell(order: Path) -> None:
    """Measure one cell of a matrix, as the file ORDER in its folder says."""
    from trainer.matrix.cell_process import run_cell

    run_cell(order)


def _read_manifests(data: DataConfig) -> None:
    """Raise UserError if a cache is missing, before the slow imports of torch and transformers."""
    from teacher_cache.shards.marks import read_manifest
    from teacher_cache.shards.storage import Storage

    for url in [share.url for share in data.shares] + [data.validation_cache]:
        if url is not None:
            read_manifest(Storage(url))


@main.command(
    examples=(
        "train-student evaluate runs/demo/student/final runs/demo/held-out/cache",
        "train-student evaluate runs/demo/student/final runs/demo/cache --validation-fraction 0.05 --json",
    )
)
@click.argument("model")
@click.argument("cache")
@click.option("--limit", type=click.IntRange(1, MOST), help="Evaluate at most this many samples.")
@click.option(
    "--validation-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    help="Evaluate only the samples that a run with this data.validation_fraction holds out; 0: all samples.",
)
@click.option("--batch-size", type=click.IntRange(1, MOST), default=4, help="Samples per forward pass.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@click.option("--trust-remote-code", is_flag=True, help="Run code that ships with the model or its tokenizer.")
@click.option(
    "--align",
    type=click.Choice(["strict", "border", "all"]),
    help="For a model with another tokenizer: measure KL where its tokens are taught, as data.align.",
)
@click.option("--digest", help="Refuse the cache unless this is the sha256 of its manifest.")
@click.option(
    "--require-signature",
    "signed_by",
    multiple=True,
    metavar="KEY",
    help="Refuse a cache that this key did not sign: a .pub file, 64 hex digits, or a trusted name. Repeatable.",
)
@json_option
def evaluate(
    model: str,
    cache: str,
    limit: int | None,
    validation_fraction: float,
    batch_size: int,
    dtype: str,
    trust_remote_code: bool,
    align: str | None,
    digest: str | None,
    signed_by: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure the model folder MODEL on the samples of CACHE: KL to the teacher, bits per byte, top-1 agreement, …"""
    from teacher_cache.trust.required import Required
    from trainer.evaluate import evaluate_folder
    from trainer.run.quiet import quiet_transformers

    quiet_transformers()
    required = Required(digest, signed_by)
    with progress("evaluating") as advance:
        measured = evaluate_folder(
            model, cache, validation_fraction, limit, batch_size, dtype, advance, required, trust_remote_code, align
        )
    if not measured["kl_is_exact"]:
        logger.info(
            "kl is a lower bound: computed over each row's stored entries and one bucket for all other tokens; "
            "a cache with capture.final gives it exactly, a larger capture.logits.k a tighter bound"
        )
    show(measured, as_json)


@main.command(
    examples=(
        "train-student export runs/demo/student/final runs/demo/three-bit --cache runs/demo/cache --group-size 64",
        "train-student export runs/demo/student/final runs/demo/small --cache runs/demo/cache --format dense "
        "--format container",
    )
)
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--cache", help="Cache of the model's own tokenizer, whose tokens calibrate the scales.")
@click.option("--bits", type=click.Choice([*map(str, get_args(WeightBits))]), help="Bits of a weight; default: 3.")
@click.option(
    "--group-size", type=click.Choice([*map(str, get_args(GroupSize))]), help="Inputs that share a scale; default: 128."
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("dense",),
    help="dense: smallest; container: the same integers in 4 bits, for kernels that take no 3; folded: the same "
    "weights in bfloat16. Of several, each becomes a folder in OUTPUT. Repeatable.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Quantise only linear layers with this name, e.g. gate_proj. Repeatable; default: all in attention and FFN.",
)
@click.option("--samples", type=click.IntRange(1, MOST), default=512, help="Sequences of the calibration.")
@click.option("--max-tokens", type=click.IntRange(1, MOST), default=2048, help="Tokens of each that are read.")
@click.option("--check/--no-check", default=True, help="Generate with what was written, in transformers and vLLM.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that ships with the model or its tokenizer.")
@json_option
def export(
    model: str,
    output: Path,
    cache: str | None,
    bits: str | None,
    group_size: str | None,
    formats: tuple[str, ...],
    targets: tuple[str, ...],
    samples: int,
    max_tokens: int,
    check: bool,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Quantise the model folder MODEL to few bits and write it to OUTPUT, for transformers and vLLM.

    Activation-aware scales come from the tokens of a cache; no teacher and no other data are needed. A student trained
    under quantisation has its scales and needs no cache either.
    """
    from trainer.quantization.exporting import DEFAULT, ExportSettings, export_folder
    from trainer.quantization.grid import Grid
    from trainer.quantization.sites import TARGETS
    from trainer.run.quiet import quiet_transformers

    quiet_transformers()
    grid = Grid(int(bits or DEFAULT.bits), int(group_size or DEFAULT.group_size))
    settings = ExportSettings(
        grid if bits or group_size else None,
        tuple(dict.fromkeys(formats)),
        targets or TARGETS,
        samples,
        max_tokens,
        check,
        trust_remote_code,
    )
    with progress("calibrating") as advance:
        summary = export_folder(model, output, cache, settings, advance)
    show(summary, as_json)


@main.command(
    examples=(
        "train-student merge runs/adapter/final runs/adapter/merged",
        "train-student merge runs/adapter/final runs/adapter/merged --base models/student --dtype bfloat16 --json",
    )
)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--base", help="Folder of the model that the adapter was trained on; default: as recorded with it.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Data type of the merged weights; default: student.dtype of the training.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run code that ships with the model.")
@json_option
def merge(
    adapter: Path, output: Path, base: str | None, dtype: Dtype | None, trust_remote_code: bool, as_json: bool
) -> None:
    """Merge the folder ADAPTER, which a student with student.adapter is, into its base model and write OUTPUT."""
    from trainer.adapters.merged_model import merge_folder
    from trainer.run.quiet import quiet_transformers

    quiet_transformers()
    with progress("merging"):
        summary = merge_folder(adapter, output, base, dtype, trust_remote_code)
    show(summary, as_json)


@main.command(
    examples=(
        "train-student push runs/demo/final hf://team/student",
        "train-student push runs/adapter/final hf://team/adapter --base team/student --public --json",
    )
)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("url")
@click.option("--base", help="Of an adapter: OWNER/NAME of its base model, for those who do not have its folder.")
@click.option("--public", is_flag=True, help="Create a new repository that everyone can read. [private]")
@json_option
def push(model: Path, url: str, base: str | None, public: bool, as_json: bool) -> None:
    """Upload the folder MODEL, a final student or an adapter, with its card to the Hugging Face Hub, hf://OWNER/NAME."""
    from trainer.push_student import push_student

    with progress("uploading"):
        summary = push_student(model, url, not public, base)
    show(summary, as_json)


if __name__ == "__main__":
    main()
