"""The run: a cache and a configuration in, a student out. Read it from top to bottom.

No teacher is loaded and no engine is imported: what the teacher knew is in the cache.
"""

import logging
import os
import pickle
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from schemas.errors import ConflictError, UserError
from schemas.train_config import StudentConfig, TrainConfig
from teacher_cache.logs import shows_details
from teacher_cache.teacher import model_fingerprint
from trainer.data.alignment import check_first_samples
from trainer.data.batches import CacheRows, check_vocabulary, evaluation_loader, read_capture
from trainer.data.training_data import check_lengths, open_training_data, open_validation, plan_training, required_of
from trainer.data.worker_transfer import check_workers, worker_trouble
from trainer.evaluate import head_on
from trainer.loop import DistillationTrainer
from trainer.losses.objective import Objective
from trainer.losses.student_signals import StudentSignals, needs_student_signals, used
from trainer.losses.target_form import needed_signals, said_of_target
from trainer.run.checkpoint import RunState, damage, find_resume, new_state, remove_incomplete, remove_unused
from trainer.run.finite import count_not_finite
from trainer.run.interrupts import StopRequest
from trainer.run.machine_failures import one_line
from trainer.run.metrics import JsonlCallback, cut_metrics
from trainer.run.model_card import model_card
from trainer.run.output_files import settle_folder, sync_folder
from trainer.run.owner import Fence, only_run_in
from trainer.run.pickles import check_checkpoint, only_data
from trainer.run.summary import Clock, cost, write_json
from trainer.student.build import load_model_config, load_student, materialise_student
from trainer.student.forward import check_head, check_packing
from trainer.student.parallel import backend, compile_layers, from_first, fsdp_settings, load_weights, use_fsdp
from trainer.student.preflight import check_output, check_room, check_saving
from trainer.student.student_tokenizer import check_tokenizer, copy_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def distill(
    config: TrainConfig, stop: StopRequest | None = None, callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, Any]:
    """Train a student as ``config`` says, resuming if there is a checkpoint; returns the summary.

    Writes to ``config.output``: ``student-init``, ``checkpoint-N``, ``metrics.jsonl``, ``tensorboard``,
    ``summary.json``, and at the end ``final`` (model, tokenizer, card). ``stop`` turning true saves a checkpoint and
    returns after the step in hand: then ``ended`` is "interrupted" and there is no final model. Raises UserError for
    anything a user can mend, and for a machine that fails.
    """
    quiet_transformers()
    check_output(Path(config.output))
    with one_line(Path(config.output)), only_data():
        arguments = training_arguments(config)
        with only_run_in(config.output, "train-student run", arguments.process_index == 0) as fence:
            return _distill(config, arguments, StopRequest() if stop is None else stop, callbacks, fence)


def _distill(
    config: TrainConfig,
    arguments: TrainingArguments,
    stop: StopRequest,
    callbacks: Sequence[TrainerCallback],
    fence: Fence,
) -> dict[str, Any]:
    output = Path(config.output)
    check_workers(config.data.num_workers)
    is_main = arguments.process_index == 0
    sharded = config.loop.parallel == "fsdp"

    # what there is to learn, and who learns it
    losses = used(config.losses)
    url = config.data.shares[0].url
    capture = read_capture(url, required_of(config.data.shares[0], config.data))
    objective = Objective(losses, capture)
    if objective.form is not None:
        logger.info("%s", said_of_target(losses.tla, objective.form))
    data = open_training_data(config.data, needed_signals(losses, capture))
    cache = data.cache
    with arguments.main_process_first(local=False):
        init_folder = materialise_student(config)
    trusts = config.student.trust_remote_code
    student_config = load_model_config(init_folder, "student", trusts)
    check_vocabulary(data.manifest, student_config, where=url)
    check_tokenizer(data.manifest, init_folder, where=url, trust_remote_code=trusts)

    # from where, and in which order
    rows_per_step = config.loop.micro_batch_size * config.loop.gradient_accumulation * arguments.world_size
    validation_data = open_validation(config, data.manifest)
    student_identity = from_first(lambda: model_fingerprint(str(init_folder), key="student"))
    validation_identity = ""
    if validation_data is not None and config.data.validation_cache is not None:
        validation_identity = validation_data[0].manifest.digest()
    start = new_state(config, data.digest, rows_per_step, student_identity, validation_identity)
    checkpoint, state = from_first(lambda: find_resume(output, start, config.loop.resume))
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    state.target = objective.form
    plan = plan_training(config, data.caches, rows_per_step, state.data)
    arguments.max_steps = len(plan) // rows_per_step
    say_length(state, arguments.max_steps)
    check_lengths(config, data.caches, None if validation_data is None else validation_data[1], student_config)
    with arguments.main_process_first(local=False):
        if is_main:
            remove_unused(output, checkpoint)
            cut_metrics(output / "metrics.jsonl", last_step=state.global_step)
        else:
            state.window = {}  # sums over all ranks, which the first one goes on with
    if sharded:
        use_fsdp(arguments)
    student = load_student(init_folder if checkpoint is None or sharded else checkpoint, config.student)
    clock = Clock()
    tokens_before = state.data.tokens

    if not is_finished(state, config, arguments):
        check = StudentCheck(config)
        if is_main:
            check_saving(student, config.student, init_folder, output)
            check_room(student, config.student, output)
        if not sharded:
            student.to(arguments.device)  # type: ignore[arg-type]
            check(student)
        if "final" in cache.signals:
            objective.teacher_head = head_on(arguments.device, cache)
        check_first_samples(data.caches, plan, state.data.rows_consumed, objective.teacher_head)
        skips = config.data.on_corrupt == "skip"
        validation = evaluation_head = None
        if validation_data is not None:
            held_out, held_out_rows = validation_data
            validation = evaluation_loader(
                held_out,
                held_out_rows,
                config.loop.micro_batch_size,
                arguments.process_index,
                arguments.world_size,
                skips,
            )
            same_head = held_out.manifest.head == data.manifest.head
            evaluation_head = objective.teacher_head if same_head else None
            evaluation_head = evaluation_head or head_on(arguments.device, held_out)
        if config.loop.compile:
            compile_layers(student)
        if needs_student_signals(losses):
            objective.signals = StudentSignals(student, losses, data.manifest, config.loop.seed)
        trainer = DistillationTrainer(
            student,
            arguments,
            train_dataset=CacheRows(cache, plan, config.data.packing, skips),
            validation=validation,
            evaluation_head=evaluation_head,
            objective=objective,
            run_state=state,
            early_stopping_patience=config.loop.early_stopping_patience,
            keep_checkpoints=config.loop.keep_checkpoints,
            stop=stop,
            fence=fence,
            callbacks=[
                *([check] if sharded else []),
                *(reports(output, state.global_step, callbacks) if is_main else []),
            ],
            log_gradient_norms=config.loop.log_gradient_norms,
        )
        trainer.remove_callback(PrinterCallback)
        logger.info("training from step %d to %d on %s", state.global_step, arguments.max_steps, arguments.device)
        clock.start()
        train(trainer, checkpoint, output if is_main else None)
        clock.stop(less=trainer.evaluation_seconds)
        trainer.note_data()
        if objective.signals is not None:
            objective.signals.close()
    if validation_data is not None:
        validation_data[0].close()

    finished = is_finished(state, config, arguments)
    stopped_early = state.stopped_early(config.loop.early_stopping_patience)
    best = best_checkpoint(output, state, config.loop.early_stopping_patience) if finished and is_main else None
    summary = {
        "ended": "interrupted" if not finished else "early stopping" if stopped_early else "completed",
        "steps": state.global_step,
        "planned_steps": arguments.max_steps,
        "final_step": state.global_step if best is None else state.best_step,
        "rows_per_step": rows_per_step,
        "epochs": plan.epoch(state.data.rows_consumed),
        "tokens": state.data.tokens,
        "skipped_samples": state.data.skipped_samples,
        "validation": state.last_validation if best is None else state.best_validation,
        "validation_kl_is_exact": validation_data and validation_data[0].manifest.capture.final is not None,
        "cache_digest": data.digest,
        "target": objective.form,
        "output": str(output),
        **cost(state.data.tokens - tokens_before, clock.seconds),
    }
    fence()
    if finished and is_main:
        if sharded:
            student = load_student(init_folder, config.student)
            load_weights(student, best or output / f"checkpoint-{state.global_step}")
        elif best is not None:
            student = load_student(best, config.student)
        card = model_card(config, [one.manifest for one in data.caches], summary)
        save_final(student, config.student, init_folder, output / "final", card)
    measured = clock.seconds > 0 or not (output / "summary.json").exists()  # a rerun of a finished run measures nothing
    if measured and is_main:
        write_json(output / "summary.json", summary)
    cache.close()
    return summary


class StudentCheck(TrainerCallback):
    """Refuses a student that cannot be trained as configured. A sharded one is whole nowhere before training begins."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def __call__(self, student: "PreTrainedModel") -> None:
        """Raise UserError unless head and packing work as they are used here."""
        check_head(student)
        if self.config.data.packing:
            check_packing(student, flatten=self.config.student.attention.startswith("flash"))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The same, on all ranks."""
        self(kwargs["model"])


def is_finished(state: RunState, config: TrainConfig, arguments: TrainingArguments) -> bool:
    """Whether no step is left to do."""
    return state.global_step >= arguments.max_steps or state.stopped_early(config.loop.early_stopping_patience)


def say_length(state: RunState, steps: int) -> None:
    """Say that a run goes on to another end than it had."""
    if state.planned_steps not in (0, steps):
        logger.info(
            "the run ends at step %d, not at %d any more: from step %d on the schedules of learning rate and loss "
            "weights are those of %d steps", steps, state.planned_steps, state.global_step, steps,
        )  # fmt: skip
    if state.global_step > steps:
        logger.warning("step %d is past the end, step %d: no step is left to do", state.global_step, steps)


def best_checkpoint(output: Path, state: RunState, patience: int | None) -> Path | None:
    """The checkpoint that the final model is of; None: the last step. Raises UserError if it is damaged."""
    if state.best_step is None or state.best_kl is None or state.best_step == state.global_step:
        return None
    if patience is None:
        logger.warning(
            "loop.early_stopping_patience is not set: `final` has the weights of step %d, validation KL %.4g; those of "
            "step %d had %.4g", state.global_step, state.last_validation["kl"], state.best_step, state.best_kl,
        )  # fmt: skip
        return None
    folder = output / f"checkpoint-{state.best_step}"
    wrong = damage(folder)
    if wrong is not None:
        raise UserError(
            f"{folder}: has the best validation KL, and is not whole ({wrong}); put the file back from a copy, or "
            "unset loop.early_stopping_patience to take the last step's weights"
        )
    return folder


def train(trainer: DistillationTrainer, checkpoint: Path | None, output: Path | None) -> None:
    """Run the loop. A UserError from a worker process loses the traceback that torch puts into its message.

    Whatever ends it, no half-written checkpoint stays in ``output`` to take room, unless that is another run's now.
    """
    try:
        _train(trainer, checkpoint)
    except ConflictError:
        raise
    except BaseException:
        if output is not None:
            remove_incomplete(output)
        raise


def _train(trainer: DistillationTrainer, checkpoint: Path | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except UserError as error:
        _, in_worker, message = str(error).rpartition(f"{type(error).__name__}: ")
        if in_worker:
            raise type(error)(message) from None
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{checkpoint}: cannot be read: it holds more than tensors and values ({str(error).splitlines()[0]}); "
            "take a checkpoint from where you trust it, or set loop.resume to false to start over"
        ) from None
    except (RuntimeError, OSError, EOFError) as error:  # the last two: while a tensor of a worker's was fetched
        trouble = worker_trouble(error, trainer.args.dataloader_num_workers)
        if trouble is None or not trainer.args.dataloader_num_workers:
            raise
        # torch's handler would raise once more, at any place, when it hears of the worker's end
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise trouble from None


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """transformers' settings for ``config``; ``max_steps`` is set when the rows are planned."""
    loop, optimizer = config.loop, config.optimizer
    on_gpu = torch.cuda.is_available()
    validates = config.data.validation_cache is not None or config.data.validation_fraction > 0
    if loop.early_stopping_patience is not None and not validates:
        raise UserError(
            f"loop.early_stopping_patience: {loop.early_stopping_patience} needs validation data; "
            "set data.validation_fraction or data.validation_cache"
        )
    arguments = TrainingArguments(
        output_dir=config.output,
        max_steps=1,
        per_device_train_batch_size=loop.micro_batch_size,
        gradient_accumulation_steps=loop.gradient_accumulation,
        learning_rate=optimizer.lr,
        lr_scheduler_type="cosine",
        warmup_steps=optimizer.warmup_steps,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.eps,
        max_grad_norm=optimizer.max_grad_norm,
        seed=loop.seed,
        bf16=loop.bf16 or config.student.dtype == "bfloat16",
        gradient_checkpointing=loop.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},  # with it, nothing inside a layer would have a gradient
        logging_steps=loop.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=loop.save_every,
        eval_strategy="steps" if validates else "no",
        eval_steps=loop.validate_every if validates else None,
        ignore_data_skip=True,  # our sampler starts at the first row that was not consumed
        remove_unused_columns=False,
        dataloader_num_workers=config.data.num_workers,
        dataloader_pin_memory=on_gpu,
        use_cpu=not on_gpu,
        ddp_find_unused_parameters=False,
        ddp_backend=backend(loop),
        **fsdp_settings(loop),
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    if arguments.n_gpu > 1:
        logger.warning("using one of %d GPUs", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


def reports(output: Path, last_step: int, callbacks: Sequence[TrainerCallback]) -> list[TrainerCallback]:
    """What writes down how the run goes, and ``callbacks``: for one rank."""
    return [JsonlCallback(output / "metrics.jsonl"), _tensorboard(output, last_step), *callbacks]


def _tensorboard(output: Path, last_step: int) -> TrainerCallback:
    """Metrics for TensorBoard in ``output/tensorboard``; hides what a killed run has logged after ``last_step``."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    writer = SummaryWriter(log_dir=str(output / "tensorboard"), purge_step=last_step + 1)

    class Flushing(TensorBoardCallback):
        def on_train_end(self, *arguments: Any, **kwargs: Any) -> None:
            writer.flush()  # raises what its thread could not write; closing does not
            super().on_train_end(*arguments, **kwargs)

    return Flushing(writer)


def save_final(student: "PreTrainedModel", settings: StudentConfig, init_folder: Path, folder: Path, card: str) -> None:
    """Write the finished model in its data type: an ordinary Hugging Face folder, complete or not there at all."""
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    student.config.use_cache = True  # the trainer turns it off
    student.to(getattr(torch, settings.dtype))
    if count_not_finite(student.parameters(), torch.device("cpu")):
        raise UserError(f"student.dtype: weights are too large for {settings.dtype}; set it to bfloat16 or float32")
    student.save_pretrained(unfinished)
    copy_tokenizer(init_folder, unfinished, settings.trust_remote_code)
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    settle_folder(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
    sync_folder(folder.parent)


def quiet_transformers() -> None:
    """Keep transformers' own messages and progress bars off the terminal, unless details are asked for."""
    if shows_details():
        return
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
