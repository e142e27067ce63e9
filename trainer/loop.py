"""``transformers.Trainer`` with our objective, data order, metrics and checkpoints; the loop itself is theirs.

It overrides public extension points (loss, data loader, batch collection, evaluation, logging, saving, one callback)
and ``_get_grad_norm``, the only place with every step's gradient norm. The state for exact resume is a ``RunState``,
saved with each checkpoint. It includes the sums of the loss terms since the last line of metrics, so that a line whose
window spans a crash is still exact.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from schemas.errors import UserError
from trainer.adapters.trained_weights import leave_out_frozen, load_trained, load_trained_shards, save_trained
from trainer.data.batches import CacheRows, training_loader
from trainer.data.row_plan import RowPlan
from trainer.data.worker_transfer import Batch
from trainer.evaluate import Validation
from trainer.losses.objective import Objective
from trainer.losses.student_pass import TeacherSide, student_pass
from trainer.quantization.fake_quantizer import SUFFIX
from trainer.run.checkpoint import RunState, keep_newest, names_in, remove_incomplete, seal, settle, write_state
from trainer.run.context import RunContext
from trainer.run.finite import FiniteCheck, count_not_finite, not_finite, refuse_unless_finite
from trainer.run.objective_trainer import ObjectiveTrainer
from trainer.run.summary import peak_memory
from trainer.student.forward import flattens, output_head
from trainer.student.parallel import from_all, shard_on_cpus
from trainer.student.router_balance import router_balance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopData:
    """The data of the loop."""

    rows: CacheRows[RowPlan]
    teacher: TeacherSide
    validation: Validation | None = None


class RunTrainer(ObjectiveTrainer):
    """Trains a student on the planned rows, starting at ``state.data.rows_consumed``."""

    def __init__(
        self,
        student: PreTrainedModel,
        run: RunContext,
        data: LoopData,
        objective: Objective,
        state: RunState,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """objective: already attached to the student. state: updated during training."""
        args, loop = run.arguments, run.config.loop
        super().__init__(
            model=student,
            args=args,
            train_dataset=data.rows,
            eval_dataset=None if data.validation is None else data.validation.batches.dataset,
            callbacks=[RunKeeper(self), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.run = run
        self.data = data
        self.objective = objective
        self.run_state = state
        self.patience = loop.early_stopping_patience
        self.keep = loop.keep_checkpoints
        self.flatten = flattens(student)
        self.router = router_balance(student)
        self.window = {name: torch.tensor(total, device=args.device) for name, total in state.window.items()}
        self.totals = torch.tensor([state.data.tokens, state.data.skipped_samples], device=args.device)
        self.evaluation_seconds = 0.0
        self.step_started = 0.0
        self.step_loss = self.grad_norm = torch.zeros((), device=args.device)
        self.finite = FiniteCheck()

    def create_accelerator_and_postprocess(self) -> None:
        """Enable FSDP on CPUs too."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            shard_on_cpus(self.accelerator, self.args)
            self.is_fsdp_enabled = True

    def progress(self) -> float:
        """Share of the training steps done, in [0, 1)."""
        return self.run_state.global_step / self.args.max_steps

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return micro-batches in the plan's order from the first unconsumed row on; ranks take turns."""
        args = self.args
        loader = training_loader(
            self.data.rows,
            self.run_state.data.rows_consumed,
            args.per_device_train_batch_size,
            args.dataloader_num_workers,
            args.dataloader_pin_memory,
            args.gradient_accumulation_steps,
        )
        return self.accelerator.prepare_data_loader(loader, device_placement=False)  # MicroBatches move them

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Give learned scales of quantised weights a parameter group of their own, without decay: the last one."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.scale_lr is not None:
            trained = self.model if model is None else model
            assert trained is not None
            scales = {id(each): each for name, each in trained.named_parameters() if name.endswith(SUFFIX)}
            for group in optimizer.param_groups:
                group["params"] = [each for each in group["params"] if id(each) not in scales]
            optimizer.add_param_group({"params": list(scales.values()), "lr": self.scale_lr, "weight_decay": 0.0})
        return optimizer

    @property
    def scale_lr(self) -> float | None:
        """Peak learning rate of the scales of quantised weights; None if there are none to learn."""
        settings = self.run.config.quantization
        return None if settings is None or settings.scale != "learned" else settings.scale_lr

    def rates(self, groups: int) -> list[float]:
        """Peak learning rates of the optimiser's parameter groups."""
        own = [] if self.scale_lr is None else [self.scale_lr]
        return [self.args.learning_rate] * (groups - len(own)) + own

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """Return one step's micro-batches and their row counts, ``objective.rows`` order, summed over ranks."""
        self.step_started = time.perf_counter()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.record_seconds("data_wait", time.perf_counter() - self.step_started)
        self.step_loss = torch.zeros((), device=self.args.device)
        skipped = sum(int(batch.pop("skipped", 0)) for batch in batches)
        laid_out, counts = self.lay_out(batches, skipped)
        self.totals += torch.stack([counts[self.objective.rows.index("attention_mask")], counts[-1]])
        return laid_out, counts[:-1]

    def note_data(self) -> None:
        """Update the run state's data part; synchronises with the device."""
        data = self.run_state.data
        data.tokens, data.skipped_samples = self.totals.tolist()
        data.places = [(*place,) for place in self.data.rows.plan.places(data.rows_consumed)]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return this micro-batch's share of the step's loss: sums over its rows, divided by the step's row counts.

        Gradients are summed over micro-batches but averaged over ranks, hence the factor ``num_processes``.
        """
        counts, progress, autocast = self.counts_by_name(num_items_in_batch), self.progress(), self.accelerator.autocast
        student = self.accelerator.unwrap_model(model)
        seen = student_pass(
            self.objective, model, lambda: output_head(student), inputs, self.data.teacher, progress, self.router
        )
        share = seen.share(self.objective, counts, progress, autocast)  # autocast: it covers the forward pass only
        loss = share.loss
        for term in share.terms:
            mean = term.total / counts[term.rows]
            self._record(term.name, mean)
            self._record(f"{term.name}_weighted", term.weight * mean)
            self._record(f"{term.name}_weight", mean.new_tensor(term.weight / self._shares()))
        if self.run.config.loop.log_gradient_norms:
            assert seen.head is not None
            with autocast():
                apart = self.objective.head_terms_apart(seen.hidden_ND, seen.head, seen.rows, progress)
            for term in apart + seen.feature_terms:
                norm = gradient_norm(term.weight * term.total / counts[term.rows], model)
                self._record(f"{term.name}_gradient_norm", norm / self._shares())
        for name, value in self.objective.figures().items():
            self._record(name, value / self._shares())
        self._record("loss", loss)
        self.step_loss = self.step_loss + loss.detach().float()
        return loss * self.accelerator.num_processes

    def record_seconds(self, name: str, seconds: float) -> None:
        """Log ``seconds`` as a mean over steps and ranks."""
        self._record(name, torch.tensor(seconds / self.accelerator.num_processes, device=self.args.device))

    def _record(self, name: str, value: torch.Tensor) -> None:
        value = value.detach().float()
        self.window[name] = self.window[name] + value if name in self.window else value

    def _shares(self) -> int:
        """Calls of compute_loss per step, over all ranks."""
        return self.args.gradient_accumulation_steps * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace transformers' running loss with every term's mean over the steps since the last line."""
        if "train_runtime" in logs:
            return  # transformers' final summary; ours is summary.json
        if "loss" in logs:
            steps = max(self.run_state.window_steps, 1)
            means = {name: self.sum_over_ranks(total).item() / steps for name, total in sorted(self.window.items())}
            means["data_wait_share"] = means["data_wait"] / means["step_seconds"]
            rest = {name: value for name, value in logs.items() if name != "loss"}
            before_weights = (*self.objective.losses, "loss")
            first = {name: means.pop(name) for name in before_weights if name in means}
            logs = {**first, **means, **rest, "rows": self.run_state.data.rows_consumed}
            logs |= {"tokens": int(self.totals[0]), **peak_memory()}
            if self.data.rows.skip_corrupt:
                logs["skipped_samples"] = int(self.totals[1])
            self.window = {}
            self.run_state.window_steps = 0
        super().log(logs)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None) -> Any:
        """Store the gradient norm of every step."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        whole = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        self.grad_norm = torch.as_tensor(whole, device=self.args.device).detach().float()
        return whole

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights, without pickled TrainingArguments. Raises UserError if one is not finite."""
        assert self.model is not None
        self.finite.settle()
        bad = int(self.sum_over_ranks(count_not_finite(self.model.parameters(), self.args.device)))
        if bad:
            raise UserError(not_finite("value of a weight", math.nan, self.state.global_step))
        is_adapter = self.run.config.student.adapter is not None
        if self.args.fsdp:
            if is_adapter:
                leave_out_frozen(self.model)
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save and is_adapter:
            save_trained(self.model, Path(str(output_dir or self.args.output_dir)))
        elif self.args.should_save:
            cast("PreTrainedModel", self.model).save_pretrained(str(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load the weights; of an adapter those that are trained."""
        student = self.model if model is None else model
        assert student is not None
        if self.run.config.student.adapter is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif self.args.fsdp:
            load_trained_shards(student, Path(resume_from_checkpoint))
        else:
            load_trained(student, Path(resume_from_checkpoint))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Validate, log, and decide on early stopping. The base class's arguments are ignored."""
        validation = self.data.validation
        assert validation is not None
        assert self.model is not None
        start = time.perf_counter()
        measured = validation.measure(
            self.model,
            reduce=self.sum_over_ranks,
            device=self.args.device,
            head_dtype=torch.bfloat16 if self.args.bf16 else None,
        )
        self.evaluation_seconds += time.perf_counter() - start
        metrics = self.report_validation(measured)
        self._judge(measured)
        return metrics

    def _judge(self, measured: dict[str, float]) -> None:
        state = self.run_state
        if not math.isfinite(measured["kl"]):
            raise UserError(not_finite("validation KL", measured["kl"], state.global_step))
        state.last_validation = measured
        if state.best_kl is None or measured["kl"] < state.best_kl:
            state.best_kl, state.best_step, state.best_validation = measured["kl"], self.state.global_step, measured
            state.stale_validations = 0
            self.control.should_save |= self.patience is not None  # so far the final model
        else:
            state.stale_validations += 1
        if state.stopped_early(self.patience):
            logger.info("no better validation KL for %d validations: stopping", state.stale_validations)
            self.control.should_save = self.control.should_training_stop = True


def gradient_norm(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Return the gradient norm of ``loss`` over all trainable parameters, a scalar; keeps the graph."""
    if not loss.requires_grad:
        return loss.new_zeros(())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()


class RunKeeper(TrainerCallback):
    """Updates the RunState each step, saves it with each checkpoint, and ends the run on a stop request."""

    def __init__(self, trainer: RunTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the configuration override the checkpoint: learning rate and log, validation and save intervals."""
        state.compute_steps(args, args.max_steps)
        optimizer = kwargs["optimizer"]
        rates = self.trainer.rates(len(optimizer.param_groups))
        follow_schedule(kwargs["lr_scheduler"], optimizer, rates, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Count the step; log and validate at the last one."""
        trainer, run_state = self.trainer, self.trainer.run_state
        plan = trainer.data.rows.plan
        run_state.global_step = state.global_step
        run_state.data.rows_consumed = state.global_step * (len(plan) // args.max_steps)
        run_state.window_steps += 1
        trainer.record_seconds("step_seconds", time.perf_counter() - trainer.step_started)
        state.epoch = plan.epoch(run_state.data.rows_consumed)
        if state.global_step >= args.max_steps:
            control.should_log = True
            control.should_evaluate = trainer.data.validation is not None
        asked = bool(trainer.run.stop)
        figures = torch.stack([trainer.step_loss, trainer.grad_norm])
        if args.world_size == 1:
            trainer.finite.add(state.global_step, figures)
        else:  # a signal may reach one rank only
            asking, *sums = trainer.sum_over_ranks(torch.cat([figures.new_tensor([asked]), figures])).tolist()
            asked = asking > 0
            refuse_unless_finite(state.global_step, *sums)
        if control.should_log or control.should_evaluate:
            trainer.finite.settle()
        if asked:
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the checkpoint once all ranks have written their parts, then remove old ones.

        Ranks share the work of syncing, hashing and storing its files.
        """
        trainer, output = self.trainer, Path(str(args.output_dir))
        folder = output / f"checkpoint-{state.global_step}"
        window = {name: trainer.sum_over_ranks(total).item() for name, total in sorted(trainer.window.items())}
        trainer.accelerator.wait_for_everyone()
        is_first = state.is_world_process_zero
        if is_first:
            trainer.run_state.window = window
            trainer.run_state.planned_steps = args.max_steps
            trainer.note_data()
            write_state(folder, trainer.run_state)
        place = trainer.run.place
        names = from_all(names_in(folder) if place.ranks.is_first_here else [])[place.ranks.here[0]]
        mine = place.ranks.share(names)
        settled = settle(folder, mine)
        place.send_files(folder.name, mine)
        parts = from_all(settled)
        trainer.run.fence()
        if is_first:
            seal(folder, state.global_step, {name: entry for part in parts for name, entry in part.items()})
            best, keep = None if trainer.patience is None else trainer.run_state.best_step, trainer.keep
            place.complete(folder.name, keep, best)
            keep_newest(output, keep, best)
        elif place.ranks.is_first_here:
            remove_incomplete(output)  # what this machine wrote is in the store


def follow_schedule(scheduler: Any, optimizer: Any, rates: list[float], step: int) -> None:
    """Set a LambdaLR to ``step`` of this run's own schedule. rates: peaks, one for each parameter group.

    The checkpoint's scheduler state belongs to the rate and length that the run had then.
    """
    scheduler.base_lrs = rates
    scheduler.last_epoch, scheduler._step_count = step, step + 1
    for group, rate, share in zip(optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = rate, rate * share(step)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
