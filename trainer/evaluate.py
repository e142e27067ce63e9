"""How close a student is to the teacher, and how well it predicts the text, over the samples of a cache."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from trainer.data import Batch
from trainer.losses.cross_entropy import cross_entropy_per_token
from trainer.losses.objective import teacher_rows
from trainer.losses.tla import tla_per_token
from trainer.taps import masked_logits


def evaluate(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    unit_column: int,
    keep_only_masked: bool,
    on_batch: Callable[[Batch], None] | None = None,
) -> dict[str, float]:
    """Means over the tokens that count, without gradients; the model is left in the mode it was in.

    unit_column: column of the log-partition at temperature 1. Returns ``kl`` (teacher ‖ student at temperature 1 with
    the "all other tokens" bucket, nats), ``cross_entropy`` (nats) and ``perplexity`` of the text, ``top1_agreement``
    (share of rows where the student's best token is the teacher's), ``teacher_cross_entropy``, and ``tokens``.
    """
    device = next(model.parameters()).device
    totals: dict[str, float] = dict.fromkeys(("kl", "cross_entropy", "top1_agreement", "teacher_cross_entropy"), 0.0)
    tokens = 0
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for cpu_batch in batches:
            batch = {name: tensor.to(device) for name, tensor in cpu_batch.items()}
            rows = teacher_rows(batch)
            logits_NV = masked_logits(model, batch, keep_only_masked)
            partition_N = rows.log_partition_NT[:, unit_column]
            per_token = {
                "kl": tla_per_token(logits_NV, rows.ids_NK, rows.logprobs_NK, partition_N, partition_N),
                "cross_entropy": cross_entropy_per_token(logits_NV, rows.next_ids_N),
                "top1_agreement": logits_NV.argmax(dim=-1) == rows.ids_NK[:, 0],
                "teacher_cross_entropy": -rows.next_logprob_N,
            }
            for name, values_N in per_token.items():
                totals[name] += values_N.sum(dtype=torch.float64).item()
            tokens += len(logits_NV)
            if on_batch is not None:
                on_batch(cpu_batch)
    model.train(was_training)
    means: dict[str, Any] = {name: total / max(tokens, 1) for name, total in totals.items()}
    means["perplexity"] = float(torch.tensor(means["cross_entropy"], dtype=torch.float64).exp())
    means["tokens"] = tokens
    return means
