"""Part 6: the fused output head against a plain one, and a step from a cache against one on hard labels."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen3ForCausalLM

from benchmarks.gpu_check.device_clock import Cost, cost_of
from benchmarks.gpu_check.device_size import DeviceSize
from benchmarks.gpu_check.random_models import qwen3_config
from benchmarks.gpu_check.reporting import Report
from benchmarks.lean_loss import CAPTURE, LOSSES, cached_rows
from benchmarks.support.results import Row, at_most
from schemas.cache_config import CaptureConfig
from schemas.train_config import LossConfig
from trainer.losses.objective import Objective
from trainer.losses.teacher_rows import TeacherRows
from trainer.student.forward import masked_hidden, output_head

MAX_OF_PLAIN_TIME, MAX_OF_PLAIN_MEMORY = 1.05, 1 / 8
MAX_OF_HARD_LABELS = 1.10


def measure(size: DeviceSize, report: Report) -> None:
    """Time, and on a GPU peak memory."""
    _head(size, report)
    if size.device == "cuda":
        torch.cuda.empty_cache()
    _step(size, report)


def _head(size: DeviceSize, report: Report) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(size.head_rows, size.head_width, device=size.device).requires_grad_()
    weight = torch.randn(size.head_vocabulary, size.head_width, device=size.device).mul_(size.head_width**-0.5)
    weight.requires_grad_()
    rows = {name: value.to(size.device) for name, value in cached_rows(size.head_rows, size.head_vocabulary).items()}
    costs = {}
    for arm in ("plain TLA", "chunked TLA"):
        loss = LOSSES[arm](hidden, weight, rows)
        costs[arm] = _cost(loss, size, (hidden, weight))
    plain, fused = costs["plain TLA"], costs["chunked TLA"]
    what = f"output head, {size.head_rows:,} rows × {size.head_vocabulary:,} tokens, bf16"
    report.add(Row(f"{what}: plain loss and gradients", plain.seconds, "s"))
    _barred(size, report, "fused ÷ plain, time", fused.seconds / plain.seconds, MAX_OF_PLAIN_TIME)
    if plain.peak_bytes:
        report.add(Row("plain, peak memory", plain.peak_bytes / 2**30, "GiB"))
        ratio = fused.peak_bytes / plain.peak_bytes
        _barred(size, report, "fused ÷ plain, peak memory", ratio, MAX_OF_PLAIN_MEMORY)


def _step(size: DeviceSize, report: Report) -> None:
    shape, tokens = size.student, size.step_tokens // 2
    torch.manual_seed(0)
    student: Any = Qwen3ForCausalLM(qwen3_config(shape))
    student.to(size.device).train()
    ids = torch.randint(shape.vocabulary, (tokens // size.sequence_tokens, size.sequence_tokens), device=size.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, -1] = False
    rows = {name: value.to(size.device) for name, value in cached_rows(int(mask.sum()), shape.vocabulary).items()}
    teacher = TeacherRows(rows["ids"], rows["logprobs"], rows["zero"][:, None], ids.roll(-1, 1)[mask], rows["zero"])
    objective = Objective(LossConfig(), CaptureConfig.model_validate(CAPTURE))

    def hard_labels() -> torch.Tensor:
        return student(input_ids=ids, labels=ids, use_cache=False).loss

    def from_cache() -> torch.Tensor:
        hidden_ND = masked_hidden(student, {"input_ids": ids, "loss_mask": mask})
        return objective.head_terms(hidden_ND, output_head(student), teacher, progress=0.0)[0] / len(hidden_ND)

    hard, cached = (_cost(loss, size, tuple(student.parameters())) for loss in (hard_labels, from_cache))
    report.add(Row(f"{shape.name} student, {tokens:,} tokens, bf16: hard labels", tokens / hard.seconds, "tok/s"))
    ratio = cached.seconds / hard.seconds
    _barred(size, report, "from a cache ÷ on hard labels, time", ratio, MAX_OF_HARD_LABELS)
    if hard.peak_bytes:
        ratio = cached.peak_bytes / hard.peak_bytes
        _barred(size, report, "from a cache ÷ on hard labels, peak memory", ratio, MAX_OF_HARD_LABELS)


def _barred(size: DeviceSize, report: Report, what: str, ratio: float, bar: float) -> None:
    """A ratio; at the size of a CPU it says nothing, and has no bar."""
    report.add(at_most(what, ratio, "×", bar) if size.device == "cuda" else Row(what, ratio, "×"))


def _cost(loss: Callable[[], torch.Tensor], size: DeviceSize, weights: tuple[torch.Tensor, ...]) -> Cost:
    """A forward and a backward pass under autocast, gradients made anew."""

    def step() -> None:
        for weight in weights:
            weight.grad = None
        with torch.autocast(size.device, torch.bfloat16):
            value = loss()
        value.backward()

    return cost_of(step, size.device, size.repetitions)
