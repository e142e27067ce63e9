"""Part 2: the reductions that run next to the teacher, against float64, and what they cost a row."""

import numpy as np
import torch

from benchmarks.gpu_check.device_clock import cost_of
from benchmarks.gpu_check.device_size import DeviceSize
from benchmarks.gpu_check.reporting import Report
from benchmarks.support.results import Row, at_least, at_most
from schemas.cache_config import HiddenCapture
from teacher_cache.signals.draws.capture import draw
from teacher_cache.signals.hidden.capture import HiddenRows, dequantise, quantise
from teacher_cache.signals.logits.capture import reduce_logits

K, DRAWS, TEMPERATURES = 64, 16, [1.0, 3.0]
MAX_LOGPROB_ERROR, MAX_ENTROPY_ERROR = 1e-4, 1e-3  # nats
MIN_SAME_DRAWS = 0.99  # the rest lies at edges of the cumulative distribution, where rounding decides
MAX_QUANTISATION_DIFFERENCE = 1e-3


def measure(size: DeviceSize, report: Report) -> None:
    """Values and costs at each size of vocabulary."""
    for vocabulary in size.vocabularies:
        _values(size, vocabulary, report)
        _costs(size, vocabulary, report)
    _hidden(size, report)


def _values(size: DeviceSize, vocabulary: int, report: Report) -> None:
    torch.manual_seed(vocabulary)
    logits_NV = torch.randn(size.checked_rows, vocabulary) * 3
    next_N = torch.randint(vocabulary, (size.checked_rows,))
    on_device = logits_NV.to(size.device)
    rows = reduce_logits(on_device, next_N.to(size.device), K, TEMPERATURES)
    exact_NV = logits_NV.double().log_softmax(dim=1)
    ids_NK, logprobs_NK = rows.ids_NK.cpu().long(), rows.logprobs_NK.cpu().double()
    top_NK = exact_NV.topk(K, dim=1).values  # ties may be ordered in any way: values are compared, not ids
    partition_NT = torch.stack([(exact_NV / t).logsumexp(dim=1) for t in TEMPERATURES], dim=1)
    entropy_N = -(exact_NV.exp() * exact_NV).sum(dim=1)
    errors = {
        "top-k set": (logprobs_NK - top_NK).abs(),
        "log-probabilities of the ids": (logprobs_NK - exact_NV.gather(1, ids_NK)).abs(),
        "next token": rows.next_logprob_N.cpu() - exact_NV.gather(1, next_N[:, None])[:, 0],
        "log-partitions": rows.log_partition_NT.cpu() - partition_NT,
        "entropy": rows.entropy_N.cpu() - entropy_N,
    }
    worst = max(error.abs().max().item() for error in errors.values())
    report.add(at_most(f"V = {vocabulary:,}: logits, largest error against float64", worst, "nat", MAX_LOGPROB_ERROR))
    uniforms_NTM = _uniforms(size.checked_rows)
    drawn = draw(on_device, rows.ids_NK, uniforms_NTM.to(size.device), TEMPERATURES)
    wanted = draw(logits_NV, ids_NK, uniforms_NTM, TEMPERATURES)
    same = (drawn.ids_NTM.cpu() == wanted.ids_NTM).double().mean().item()
    report.add(at_least(f"V = {vocabulary:,}: draws equal to the CPU's", same, "share", MIN_SAME_DRAWS))
    error = (drawn.entropy_NT[:, 0].cpu() - entropy_N).abs().max().item()
    report.add(at_most(f"V = {vocabulary:,}: draws, entropy against float64", error, "nat", MAX_ENTROPY_ERROR))


def _uniforms(rows: int) -> torch.Tensor:
    offsets = np.random.default_rng(0).random((rows, len(TEMPERATURES), DRAWS))
    return torch.from_numpy((np.arange(DRAWS) + offsets) / DRAWS)


def _costs(size: DeviceSize, vocabulary: int, report: Report) -> None:
    n_rows = size.timed_rows
    logits_NV = torch.randn(n_rows, vocabulary, device=size.device, dtype=getattr(torch, size.decoder_dtype)) * 3
    next_N = torch.zeros(n_rows, dtype=torch.int64, device=size.device)
    uniforms_NTM = _uniforms(n_rows).to(size.device)
    ids_NK = reduce_logits(logits_NV, next_N, K, TEMPERATURES).ids_NK
    calls = {
        "logits": lambda: reduce_logits(logits_NV, next_N, K, TEMPERATURES),
        f"{DRAWS} draws at two temperatures": lambda: draw(logits_NV, ids_NK, uniforms_NTM, TEMPERATURES),
    }
    for name, call in calls.items():
        cost = cost_of(call, size.device, size.repetitions)
        report.add(Row(f"V = {vocabulary:,}: {name}, time", cost.seconds / n_rows * 1e6, "µs/row"))
        if cost.peak_bytes:
            report.add(Row(f"V = {vocabulary:,}: {name}, peak", cost.peak_bytes / n_rows / vocabulary, "bytes/row/V"))


def _hidden(size: DeviceSize, report: Report) -> None:
    settings = HiddenCapture()
    torch.manual_seed(0)
    hidden_ND = torch.randn(size.timed_rows, size.hidden_width)
    hidden_ND[:, 7] *= 200  # as the massive activations of real teachers
    here = _restored(quantise(hidden_ND, settings), settings)
    there = _restored(quantise(hidden_ND.to(size.device), settings), settings)
    error = ((here - there).norm() / here.norm()).item()
    what = f"hidden states, width {size.hidden_width:,}: quantised here against the CPU"
    report.add(at_most(what, error, "relative", MAX_QUANTISATION_DIFFERENCE))
    on_device = hidden_ND.to(size.device)
    cost = cost_of(lambda: quantise(on_device, settings), size.device, size.repetitions)
    report.add(Row("hidden states: quantising, time", cost.seconds / size.timed_rows * 1e6, "µs/row"))


def _restored(rows: HiddenRows, settings: HiddenCapture) -> torch.Tensor:
    values, scales, index, outliers = (part.cpu() for part in rows)
    return dequantise(values, scales, index, outliers, settings)
