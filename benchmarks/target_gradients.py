"""Gradients of each cached form of the target, compared with that of the full distributions.

Real rows: SmolLM2-135M over standard library code; the student is the same model without a third of its layers. The
gradient is that of the summed loss with respect to the student's final hidden states, flattened to one vector of
rows × width. Forms are as stored: log-probabilities have been through the codec, final hidden states through
quantisation.

Draws are resampled 200 times. The mean gradient of each such form is compared with the dense one: along the latter's
direction, where the difference must be within three standard errors; and in full, as squared distance divided by its
expectation under sampling noise alone (1 if unbiased). ``head_and_tail`` is judged with unrounded top entries, because
rounding stored log-probabilities (steps of 1/16 nat) adds a bias of its own, shown in the last lines.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import in_own_process, sequences_of, shared_cache
from benchmarks.support.results import Row, at_least, at_most, exit_status, write_results

TEMPERATURES = [1.0, 2.0, 3.0]
TOKENS = 128
DROPPED_LAYERS = range(13, 23)
RESAMPLINGS = 200
K = 64


def main() -> int:
    """Run the benchmark; returns the exit status."""
    raw = in_own_process(measure)
    rows = []
    for form, by_temperature in raw["fixed"].items():
        cosines = [by_temperature[str(t)]["cosine"] for t in TEMPERATURES]
        norms = [by_temperature[str(t)]["norm"] for t in TEMPERATURES]
        if form == "dense, int8":
            rows.append(at_least(f"{form}: lowest cosine at T = 1, 2, 3", min(cosines), "", 0.995))
        rows.append(Row(f"{form}: cosine at T = 1 · 2 · 3", joined(cosines)))
        rows.append(Row("… norm ÷ dense norm", joined(norms)))
    for form, by_temperature in raw["drawn"].items():
        measured = [by_temperature[str(t)] for t in TEMPERATURES]
        stored = form.endswith("as stored")
        if not stored:
            away = max(abs(m["standard_errors"]) for m in measured)
            rows.append(at_most(f"{form}: largest bias along the dense gradient", away, "standard errors", 3))
        rows.append(Row(f"{form}: bias along it, T = 1 · 2 · 3", joined([100 * m["bias"] for m in measured]), "%"))
        rows.append(Row("… squared distance of the mean ÷ chance", joined([m["chance"] for m in measured])))
        rows.append(Row("… cosine of one set of draws", joined([m["cosine"] for m in measured])))
    title = f"Gradients of cached targets against the dense one: {raw['rows']} real rows, V = {raw['vocabulary']:,}"
    write_results("target_gradients", title, rows, raw)
    return exit_status(rows)


def joined(values: list[float]) -> str:
    """Several figures formatted for one table cell."""
    return " · ".join(f"{value:.3g}" if abs(value) < 0.9 else f"{value:.4f}" for value in values)


@torch.no_grad()
def measure() -> dict[str, Any]:
    """Compute all figures; to be run in its own process, which frees the models."""
    from teacher_cache.output_head import OutputHead
    from teacher_cache.shards.reader import CacheReader

    torch.manual_seed(0)
    cache, _ = shared_cache()
    ids = np.stack([sequence[:TOKENS] for sequence in sequences_of(CacheReader(str(cache)), limit=2)])
    teacher_ND, student_ND, head = hidden_states(ids)
    logits_NV = head.logits(teacher_ND)
    next_ids = torch.from_numpy(np.roll(ids, -1, axis=1).reshape(-1))
    problem = Problem(logits_NV, teacher_ND, student_ND, OutputHead(head.weight_VD), next_ids)
    fixed = {
        name: {str(t): compared(problem.gradient(make(t), t), problem.dense(t)) for t in TEMPERATURES}
        for name, make in problem.fixed_forms().items()
    }
    drawn: dict[str, dict[str, Any]] = {}
    for name, (region, n, stored) in DRAWN.items():
        drawn[name] = {}
        for t in TEMPERATURES:
            drawn[name][str(t)] = problem.resampled(region, n, stored, t)
            print(name, t, drawn[name][str(t)], flush=True)
    return {"fixed": fixed, "drawn": drawn, "rows": len(logits_NV), "vocabulary": logits_NV.shape[1]}


DRAWN = {
    "sampled, 12 draws": ("all", 12, False),
    "sampled, 50 draws": ("all", 50, False),
    "head_and_tail, 64 + 50 draws": ("tail", 50, False),
    "head_and_tail, 64 + 50 draws, as stored": ("tail", 50, True),
}


def hidden_states(ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Final hidden states [N, D] of teacher and student, and the teacher's output head."""
    from transformers import AutoModelForCausalLM

    from trainer.student.forward import masked_hidden, output_head

    batch = {"input_ids": torch.from_numpy(ids), "loss_mask": torch.ones(ids.shape, dtype=torch.bool)}
    model: Any = AutoModelForCausalLM.from_pretrained(make_teacher(), dtype=torch.float32).eval()
    teacher = masked_hidden(model, batch).clone()
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList([layer for i, layer in enumerate(layers) if i not in DROPPED_LAYERS])
    return teacher, masked_hidden(model, batch).clone(), output_head(model)


class Problem:
    """The rows, and the loss gradient of any target with respect to the student's final hidden states, flattened."""

    def __init__(
        self, logits_NV: torch.Tensor, teacher_ND: torch.Tensor, student_ND: torch.Tensor, head: Any, next_ids: Any
    ) -> None:
        from schemas.cache_config import LogitsCapture
        from teacher_cache.records import Request
        from teacher_cache.signals.logits.capture import reduce_logits, to_sample

        self.logits_NV, self.teacher_ND, self.student_ND, self.head = logits_NV, teacher_ND, student_ND, head
        self.vocabulary = logits_NV.shape[1]
        self.capture = LogitsCapture(k=K, temperatures=TEMPERATURES)
        rows = reduce_logits(logits_NV, next_ids, K, TEMPERATURES)
        n_rows = len(logits_NV)
        every_row = np.arange(n_rows, dtype=np.int32)
        self.exact = to_sample(rows, Request(np.zeros(n_rows + 1, np.int64), every_row), self.capture)
        self.stored = self._through_codec(self.exact)
        self._dense: dict[float, torch.Tensor] = {}

    def _through_codec(self, sample: Any) -> Any:
        from schemas.cache_config import CodecConfig
        from teacher_cache.codec.permutation import CodeTable
        from teacher_cache.signals.logits.codec import LogitsCodec

        codec = LogitsCodec(self.capture, CodecConfig(), CodeTable(np.arange(self.vocabulary)))
        return codec.decode(codec.encode(sample), sample.num_tokens)

    def gradient(self, target: Any, temperature: float) -> torch.Tensor:
        """The gradient for ``target``, flattened to [N · D]."""
        from trainer.losses.tla import tla_

        _, gradient_NV = tla_(self.head.logits(self.student_ND), target, temperature)
        return (gradient_NV @ self.head.weight_VD).flatten()

    def dense(self, temperature: float) -> torch.Tensor:
        """The gradient for the full distributions, [N · D]; cached."""
        from trainer.losses.targets import DenseTarget

        if temperature not in self._dense:
            target = DenseTarget(self.teacher_ND, self.head, temperature)
            self._dense[temperature] = self.gradient(target, temperature)
        return self._dense[temperature]

    def fixed_forms(self) -> dict[str, Callable[[float], Any]]:
        """Deterministic forms: name → function from temperature to target."""
        from schemas.cache_config import LogitsCapture, Quantised
        from teacher_cache.signals.hidden.capture import dequantise, quantise
        from teacher_cache.signals.logits.capture import select_counts
        from trainer.losses.targets import DenseTarget

        nucleus = LogitsCapture(policy="nucleus", mass=0.95, k=K, temperatures=TEMPERATURES)
        kept = torch.from_numpy(select_counts(self.exact.logprobs, nucleus))
        counts = {f"top_k {k}": torch.tensor(k) for k in (8, 16, K)} | {"nucleus 0.95": kept[:, None]}
        forms: dict[str, Callable[[float], Any]] = {
            f"{name}, bucket": partial(self.top_k, self.stored, count, "bucket") for name, count in counts.items()
        }
        for tail in ("renormalise", "ignore"):
            forms[f"top_k {K}, {tail}"] = partial(self.top_k, self.stored, torch.tensor(K), tail)
        for dtype in ("int8", "bfloat16"):
            capture = Quantised(dtype=dtype)
            hidden = dequantise(*quantise(self.teacher_ND, capture), capture)
            forms[f"dense, {dtype}"] = partial(DenseTarget, hidden, self.head)
        return forms

    def top_k(self, sample: Any, k: torch.Tensor, tail: Any, temperature: float) -> Any:
        """The target from the first ``k`` entries of each row."""
        from trainer.losses.targets import top_k_target

        ids, logprobs, partition = map(torch.from_numpy, (sample.ids, sample.logprobs, sample.log_partition))
        logprobs = logprobs.masked_fill(torch.arange(K) >= k, -torch.inf)
        log_partition = partition[:, TEMPERATURES.index(temperature)]
        return top_k_target(ids, logprobs, log_partition, temperature, self.vocabulary, tail)

    def resampled(self, region: str, n: int, stored: bool, temperature: float) -> dict[str, float]:
        """Bias and noise of the gradient over RESAMPLINGS sets of draws."""
        from schemas.cache_config import DrawsCapture
        from teacher_cache.records import Request
        from teacher_cache.signals.draws.capture import draw, uniforms
        from trainer.losses.targets import draws_target

        capture = DrawsCapture(n=n, region=region, temperatures=[temperature])
        rows = np.arange(len(self.logits_NV), dtype=np.int32)
        top = top_ids = None
        if region == "tail":
            top = self.top_k(self.stored if stored else self.exact, torch.tensor(K), "bucket", temperature)
            top_ids = torch.from_numpy(self.exact.ids)
        dense = self.dense(temperature)
        direction = dense / dense.norm()
        along, cosines = [], []
        total, squares = torch.zeros_like(dense, dtype=torch.float64), torch.zeros_like(dense, dtype=torch.float64)
        for seed in range(RESAMPLINGS):
            random = torch.from_numpy(uniforms(Request(rows, rows, seed=seed), capture))
            drawn = draw(self.logits_NV, top_ids, random, [temperature])
            target = draws_target(top, drawn.ids_NTM[:, 0], drawn.entropy_NT[:, 0], self.vocabulary)
            gradient = self.gradient(target, temperature)
            along.append(float(gradient @ direction))
            cosines.append(along[-1] / float(gradient.norm()))
            total += gradient
            squares += gradient.double().square()
        mean = total / RESAMPLINGS
        variance = (squares / RESAMPLINGS - mean.square()) * RESAMPLINGS / (RESAMPLINGS - 1)
        bias = float(np.mean(along) - float(dense.norm()))
        return {
            "bias": bias / float(dense.norm()),
            "standard_errors": bias / (float(np.std(along, ddof=1)) / RESAMPLINGS**0.5),
            "chance": float((mean - dense).square().sum() / (variance.sum() / RESAMPLINGS)),
            "cosine": float(np.mean(cosines)),
        }


def compared(gradient: torch.Tensor, dense: torch.Tensor) -> dict[str, float]:
    """Cosine with the dense gradient, and the ratio of norms."""
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(gradient, dense, dim=0)),
        "norm": float(gradient.norm() / dense.norm()),
    }


if __name__ == "__main__":
    sys.exit(main())
