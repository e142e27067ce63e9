"""One training run, from configuration and cache to the final student: prepare → resume → train → finish.

No teacher is loaded and no engine imported: the cache replaces them.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from schemas.train_config import QuantizationConfig, TrainConfig
from teacher_cache.output_head import OutputHead
from teacher_cache.stop_request import StopRequest
from teacher_cache.teacher import model_fingerprint
from trainer.adapters.finished import write_final_adapter
from trainer.adapters.lora_layers import add_lora, check_packages, load_frozen
from trainer.data.alignment import check_first_samples
from trainer.data.batches import CacheRows
from trainer.data.open_caches import check_vocabulary, read_capture
from trainer.data.readable import Cache
from trainer.data.retargeted_reader import RetargetedReader
from trainer.data.row_plan import RowPlan
from trainer.data.sample_lengths import check_lengths
from trainer.data.shares import required_of
from trainer.data.training_data import TrainingData, open_training_data, plan_training
from trainer.data.validation_data import ValidationData, open_validation
from trainer.data.worker_transfer import check_workers
from trainer.evaluate import head_on, validation_on
from trainer.initial_weights import materialise_student, pruned_in
from trainer.loop import LoopData, RunTrainer
from trainer.losses.objective import Objective
from trainer.losses.student_pass import TeacherSide
from trainer.losses.token_classes import TokenClasses
from trainer.losses.token_map import TokenMap
from trainer.quantization.exporting import ExportSettings, export_folder
from trainer.quantization.scales_file import write_scales
from trainer.quantization.smoke import check_readers
from trainer.quantization.trained import quantise_layers, rounded_student
from trainer.retargeting import retargeting_of, side_of
from trainer.run.arguments import training_arguments
from trainer.run.checkpoint import RunState, find_resume, new_state, remove_unused, say_length
from trainer.run.context import RunContext
from trainer.run.final_model import best_checkpoint, load_final, load_sharded, save_final
from trainer.run.loop_errors import loop_errors
from trainer.run.machine_failures import one_line
from trainer.run.metrics import closing, cut_metrics, reports
from trainer.run.model_card import model_card
from trainer.run.output_names import SAMPLES_FILE
from trainer.run.pickles import check_checkpoint, only_data
from trainer.run.quiet import quiet_transformers
from trainer.run.stored_output import open_output, working_config
from trainer.run.student_check import StudentCheck
from trainer.run.summary import Clock, cost, write_json
from trainer.run.text_samples import SampleWriter, read_prompts
from trainer.student.build import INIT_FOLDER, load_model_config, load_student
from trainer.student.parallel import compile_layers, free_together, from_first, use_fsdp
from trainer.student.preflight import check_output, check_room, check_saving
from trainer.student.student_tokenizer import check_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Objective, data, and the student's initial weights."""

    objective: Objective
    data: TrainingData
    validation: ValidationData | None
    init_folder: Path  # the student's initial weights
    student_config: "PreTrainedConfig"
    tokenizer: str  # digest of the student's tokenizer if caches of another one are read, else ""


@dataclass(frozen=True)
class Start:
    """Where training starts, and the rows it reads."""

    checkpoint: Path | None
    state: RunState
    plan: RowPlan
    tokens_before: int


@dataclass(frozen=True)
class Trained:
    """The student after training; None if its checkpoint has what is needed and its memory is to be freed."""

    student: "PreTrainedModel | None"
    seconds: float  # 0 if no step was left


def distill(
    config: TrainConfig, stop: StopRequest | None = None, callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, Any]:
    """Train a student, resuming from a checkpoint if there is one; returns the summary.

    Writes to ``config.output``, a folder or a store: ``student-init``, ``checkpoint-N``, ``metrics.jsonl``,
    ``tensorboard``, ``summary.json``, and at the end ``final`` (model, tokenizer, card). When ``stop`` turns true, the
    current step is finished and a checkpoint saved; ``ended`` is then "interrupted" and there is no final model. Raises
    UserError for user errors and machine failures.
    """
    quiet_transformers()
    working = working_config(config)
    folder = Path(working.output)
    check_output(folder)
    with one_line(folder), only_data():
        arguments = training_arguments(working)
        ranks = arguments.process_index, arguments.local_process_index, arguments.world_size
        with open_output(config.output, folder, *ranks) as place:
            run = RunContext(working, arguments, StopRequest() if stop is None else stop, place)
            prepared = prepare(run)
            start = resume(run, prepared)
            trained = train(run, prepared, start, callbacks)
            return finish(run, prepared, start, trained)


def prepare(run: RunContext) -> Prepared:
    """Open the caches and build the student's initial weights. Raises UserError if they do not fit together."""
    config, share, trusts = run.config, run.config.data.shares[0], run.config.student.trust_remote_code
    check_workers(config.data.num_workers)
    if config.quantization is not None and config.quantization.check:
        check_readers()
    if config.student.adapter is not None:
        check_packages(config.student.adapter)
    run.place.fetch_student()
    side = side_of(config)
    retargeting = retargeting_of(config, side)
    if retargeting is None:
        objective = Objective(config.losses, read_capture(share.url, required_of(share, config.data)))
        data = open_training_data(config.data, objective.signals)
        notes = objective.notes
    else:
        objective = Objective(retargeting.losses, retargeting.capture)
        data = open_training_data(config.data, objective.signals, side, retargeting.rows)
        notes = [retargeting.note]
    for note in notes:
        logger.info("%s", note)
    with run.arguments.main_process_first(local=False):
        made = materialise_student(config) if run.is_first else None
    run.place.share_student()
    init_folder = made or materialise_student(config)
    student_config = load_model_config(init_folder, "student", trusts)
    check_tokenizer(data.manifest, init_folder, where=share.url, trust_remote_code=trusts)
    check_vocabulary(data.manifest, student_config, where=share.url)
    validation = open_validation(config.data, data.manifest, side)
    return Prepared(
        objective, data, validation, init_folder, student_config, "" if retargeting is None else retargeting.side.digest
    )


def resume(run: RunContext, prepared: Prepared) -> Start:
    """Find the newest checkpoint, plan the rows of the whole run, and remove a killed run's leftovers."""
    config, data, validation = run.config, prepared.data, prepared.validation
    student = from_first(lambda: model_fingerprint(str(prepared.init_folder), key="student"))
    validated_on = ""
    if validation is not None and config.data.validation_cache is not None:
        validated_on = validation.cache.manifest.digest()
    named = config.model_copy(update={"output": run.place.name})
    fresh = new_state(named, data.digest, run.rows_per_step, student, validated_on, prepared.tokenizer)
    run.place.fetch_progress(config.loop)
    found, state = from_first(lambda: find_resume(run.output, fresh, config.loop.resume))
    checkpoint = None if found is None else run.output / found.name
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    state.target = prepared.objective.target
    plan = plan_training(config.data, config.loop, data.caches, run.rows_per_step, state.data)
    run.arguments.max_steps = len(plan) // run.rows_per_step
    say_length(state, run.arguments.max_steps)
    check_lengths(config, data.caches, None if validation is None else validation.rows, prepared.student_config)
    with run.arguments.main_process_first(local=False):
        if run.is_first:
            run.place.remove_unused(None if checkpoint is None else checkpoint.name)
            remove_unused(run.output, checkpoint)
            cut_metrics(run.output / "metrics.jsonl", last_step=state.global_step)
            if config.loop.samples is not None:
                cut_metrics(run.output / SAMPLES_FILE, last_step=state.global_step, first_step=0)
        else:
            state.window = {}  # sums over all ranks, continued by rank 0
    return Start(checkpoint, state, plan, state.data.tokens)


def train(run: RunContext, prepared: Prepared, start: Start, callbacks: Sequence[TrainerCallback]) -> Trained:
    """Load the student, run the checks, and train it."""
    config, state, objective = run.config, start.state, prepared.objective
    adapter = config.student.adapter
    if run.sharded:
        use_fsdp(run.arguments)
    if adapter is not None and run.is_finished(state):
        return Trained(None, 0.0)
    if adapter is None:
        weights = prepared.init_folder if start.checkpoint is None or run.sharded else start.checkpoint
        student = load_student(weights, config.student, config.data.packing, run.arguments.bf16)
    else:
        student = load_frozen(prepared.init_folder, config, run.arguments.bf16)
    check, clock = StudentCheck(config, run.arguments), Clock()
    if run.is_finished(state):
        return Trained(None if run.sharded else student, 0.0)
    if run.is_first:
        check_saving(student, config.student, prepared.init_folder, run.output)
    if adapter is not None:
        add_lora(student, adapter, config.loop.seed)
    if run.is_first:
        check_room(student, config.student, run.output)
    if not run.sharded:
        student.to(run.arguments.device)  # type: ignore[arg-type]
        check(student)
    data = open_loop_data(run, prepared, start)
    if config.loop.compile:
        compile_layers(student)
    quantization = config.quantization
    if quantization is not None:
        checkpoint = None if run.sharded else start.checkpoint
        quantise_layers(student, prepared.init_folder, quantization, checkpoint)
    objective.attach(student, prepared.data.manifest, config.loop.seed)
    shown = open_reports(run, prepared, student, state.global_step, callbacks) if run.is_first else []
    trainer = RunTrainer(student, run, data, objective, state, [check, *shown] if run.sharded else shown)
    logger.info("training from step %d to %d on %s", state.global_step, run.arguments.max_steps, run.arguments.device)
    clock.start()
    with loop_errors(run, start.checkpoint), closing(shown):
        trainer.train(resume_from_checkpoint=None if start.checkpoint is None else str(start.checkpoint))
    clock.stop(less=trainer.evaluation_seconds)
    trainer.note_data()
    objective.detach(student)
    is_whole = not run.sharded and quantization is None and adapter is None
    return Trained(student if is_whole else None, clock.seconds)


def open_reports(
    run: RunContext,
    prepared: Prepared,
    student: "PreTrainedModel",
    last_step: int,
    callbacks: Sequence[TrainerCallback],
) -> list[TrainerCallback]:
    """The callbacks of rank 0. Raises UserError if text samples are wanted, and the student has no tokenizer."""
    settings = run.config.loop.samples
    if settings is not None:
        trusts = run.config.student.trust_remote_code
        prompts = read_prompts(settings, run.config.data.shares[0].url, prepared.data.caches[0].manifest)
        writer = SampleWriter.of(run.output / SAMPLES_FILE, settings, prompts, prepared.init_folder, trusts)
        callbacks = [*callbacks, writer]
    return reports(run, last_step, sum(each.numel() for each in student.parameters()), callbacks)


def open_loop_data(run: RunContext, prepared: Prepared, start: Start) -> LoopData:
    """Open the rows to train and validate on. Raises UserError if the next samples are inconsistent."""
    data, held_out = prepared.data, prepared.validation
    teacher_head = head_on(run.arguments.device, data.cache) if "final" in data.cache.signals else None
    check_first_samples(data.caches, start.plan, start.state.data.rows_consumed, teacher_head)
    token_maps = to_student(data.caches[0], teacher_head, prepared.student_config)
    classes = token_classes(data.caches, prepared.student_config, run.arguments.device)
    rows = CacheRows(data.cache, start.plan, run.config.data.packing, run.skip_corrupt)
    teacher = TeacherSide(teacher_head, token_maps, classes)
    if held_out is None:
        return LoopData(rows, teacher)
    validation = validation_on(
        held_out,
        run.config.data,
        data.manifest,
        teacher_head,
        run.arguments.device,
        run.config.loop.micro_batch_size,
        run.arguments.process_index,
        run.arguments.world_size,
        prepared.init_folder,
        run.config.student.trust_remote_code,
        run.skip_corrupt,
    )
    return LoopData(rows, teacher, validation)


def to_student(cache: Cache, head: OutputHead | None, student: "PreTrainedConfig") -> list[TokenMap]:
    """Maps from the tokens of the teacher's head to those of a student with another tokenizer: in texts, in chats."""
    if head is None or not isinstance(cache, RetargetedReader):
        return []
    sizes = len(head.weight_VD), student.get_text_config().vocab_size
    return [TokenMap.of(whole_V, *sizes).to(head.weight_VD.device) for whole_V in cache.whole_tokens]


def token_classes(
    caches: Sequence[Cache], student: "PreTrainedConfig", device: "torch.device"
) -> list[TokenClasses | None]:
    """Classes of the student's tokens for each cache; None where rows are not in classes."""
    n_rows, found = student.get_text_config().vocab_size, []
    for cache in caches:
        common_V = cache.common_tokens if isinstance(cache, RetargetedReader) else None
        found.append(None if common_V is None else TokenClasses.of(common_V, n_rows).to(device))
    return found


def finish(run: RunContext, prepared: Prepared, start: Start, trained: Trained) -> dict[str, Any]:
    """Write the final model, unless steps are left, and the summary; returns the summary."""
    config, state = run.config, start.state
    if prepared.validation is not None:
        prepared.validation.cache.close()
    finished = run.is_finished(state)
    best = None
    if finished and run.is_first:
        for step in last_checkpoints(run, state):
            run.place.fetch_checkpoint(f"checkpoint-{step}")
        best = best_checkpoint(run.output, state, config.loop.early_stopping_patience)
    summary = summarise(run, prepared, start, best) | cost(state.data.tokens - start.tokens_before, trained.seconds)
    run.fence()
    if trained.student is None:
        free_together()  # model and optimiser, before rank 0 takes memory for all of the model, and vLLM for its check
    if finished and run.is_first:
        write_final(run, prepared, trained, best, summary)
    summary_file = run.output / "summary.json"
    if run.is_first and (trained.seconds > 0 or not summary_file.exists()):  # else keep that of the finished run
        write_json(summary_file, summary)
    if run.is_first:
        run.place.send_results()
    prepared.data.cache.close()
    if finished:
        run.place.leave()
    return summary


def last_checkpoints(run: RunContext, state: RunState) -> set[int]:
    """Steps of the checkpoints that ``final`` is made from; other machines may have written parts of them."""
    steps = {state.global_step} if run.sharded else set()
    if run.config.loop.early_stopping_patience is not None and state.best_step not in (None, state.global_step):
        steps.add(state.best_step)
    return steps


def write_final(
    run: RunContext, prepared: Prepared, trained: Trained, best: Path | None, summary: dict[str, Any]
) -> None:
    """Write ``final``; of a student trained under quantisation also the packed folders, whose sizes join the summary.

    best: as for ``summarise``.
    """
    config, quantization, folder = run.config, run.config.quantization, run.output / "final"
    checkpoint = best or run.output / f"checkpoint-{summary['steps']}"
    manifests = [one.manifest for one in prepared.data.caches]
    pruned = None if config.student.ffn is None else pruned_in(prepared.init_folder)
    base = "" if config.student.adapter is None else model_fingerprint(str(prepared.init_folder), key="student")
    card = model_card(config, prepared.objective, manifests, summary, pruned, base)
    if config.student.adapter is not None:
        kept = config.kept_checkpoint is not None or "://" not in run.place.name
        where = str(prepared.init_folder.resolve()) if kept else f"{run.place.name}/{INIT_FOLDER}"
        write_final_adapter(folder, checkpoint, config.student, prepared.init_folder, where, base, card)
        return
    add_files: Callable[[Path], None] | None = None
    student: PreTrainedModel | None
    if quantization is not None:
        bf16 = run.arguments.bf16
        rounded = rounded_student(checkpoint, prepared.init_folder, config.student, quantization, run.sharded, bf16)
        student, add_files = rounded.student, partial(write_scales, scales=rounded.scales, record=rounded.record)
    elif run.sharded:
        student = load_sharded(prepared.init_folder, config.student, checkpoint)
    else:
        student = trained.student if best is None else load_final(best, config.student)
    assert student is not None
    save_final(student, config.student, prepared.init_folder, folder, card, add_files)
    if quantization is not None:
        summary["quantization"] = write_packed_folders(folder, quantization, config.student.trust_remote_code)


def write_packed_folders(final: Path, quantization: QuantizationConfig, trust_remote_code: bool) -> dict[str, Any]:
    """Pack the weights of ``final``, which lie on a grid, in each format, beside it; returns summaries by format."""
    written: dict[str, Any] = {}
    for name in quantization.formats:
        folder = final.with_name(f"{final.name}-{name}")
        shutil.rmtree(folder, ignore_errors=True)
        settings = ExportSettings(formats=(name,), check=quantization.check, trust_remote_code=trust_remote_code)
        written[name] = export_folder(str(final), folder, None, settings)
    return written


def summarise(run: RunContext, prepared: Prepared, start: Start, best: Path | None) -> dict[str, Any]:
    """Return ``summary.json`` without speed and memory. best: the final model's checkpoint; None: the last step."""
    state, validation = start.state, prepared.validation
    stopped_early = state.stopped_early(run.config.loop.early_stopping_patience)
    ended = "early stopping" if stopped_early else "completed"
    return {
        "ended": ended if run.is_finished(state) else "interrupted",
        "steps": state.global_step,
        "planned_steps": run.arguments.max_steps,
        "final_step": state.global_step if best is None else state.best_step,
        "rows_per_step": run.rows_per_step,
        "epochs": start.plan.epoch(state.data.rows_consumed),
        "tokens": state.data.tokens,
        "skipped_samples": state.data.skipped_samples,
        "validation": state.last_validation if best is None else state.best_validation,
        "validation_kl_is_exact": None if validation is None else validation.cache.manifest.capture.final is not None,
        "cache_digest": prepared.data.digest,
        "target": prepared.objective.target,
        "align": run.config.data.align if prepared.tokenizer else None,
        "output": run.place.name,
    }
