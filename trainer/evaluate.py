"""How close a student is to the teacher, and how well it predicts the text, over the samples of a cache."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from schemas.errors import UserError
from trainer.data import Batch, check_vocabulary, evaluation_loader, open_cache
from trainer.losses.cross_entropy import cross_entropy_per_token
from trainer.losses.objective import teacher_rows
from trainer.losses.tla import tla_per_token
from trainer.order import sorted_rows, split_by_key
from trainer.student import load_model
from trainer.taps import accepts_logits_to_keep, masked_logits


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
    Raises UserError if no token counts.
    """
    device = next(model.parameters()).device
    totals: dict[str, float] = dict.fromkeys(("kl", "cross_entropy", "top1_agreement", "teacher_cross_entropy"), 0.0)
    tokens = 0
    was_training = model.training
    model.eval()
    with torch.no_grad():
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
    if tokens == 0:
        raise UserError("nothing to evaluate: no token of these samples counts (loss_mask is False everywhere)")
    means: dict[str, Any] = {name: total / tokens for name, total in totals.items()}
    means["perplexity"] = float(torch.tensor(means["cross_entropy"], dtype=torch.float64).exp())
    means["tokens"] = tokens
    return means


def evaluate_folder(
    model_folder: str,
    cache_url: str,
    validation_fraction: float = 0.0,
    limit: int | None = None,
    batch_size: int = 4,
    dtype: str = "float32",
    advance: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """``evaluate`` for the model in a folder over a cache, or over the samples that ``validation_fraction`` holds out.

    limit: at most this many samples, the first ones in the cache's order. advance: called with (samples done, samples).
    Also returns ``samples`` and the model's number of ``parameters``. Raises UserError.
    """
    cache = open_cache(cache_url)
    everything, held_out = split_by_key(cache.keys, validation_fraction)
    samples = (held_out if validation_fraction > 0 else everything)[:limit]
    if not len(samples):
        raise UserError(f"{cache_url}: --validation-fraction {validation_fraction} holds out no sample; choose more")
    model: Any = load_model(model_folder, key="MODEL", dtype=getattr(torch, dtype))
    check_vocabulary(cache.manifest, model.config, where=cache_url)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    done = 0

    def on_batch(batch: Batch) -> None:
        nonlocal done
        done += len(batch["input_ids"])
        if advance is not None:
            advance(done, len(samples))

    loader = evaluation_loader(cache, sorted_rows(samples, cache.num_tokens), batch_size)
    unit_column = cache.manifest.capture.logits.temperatures.index(1.0)
    measured = evaluate(model, loader, unit_column, accepts_logits_to_keep(model), on_batch)
    cache.close()
    return {**measured, "samples": len(samples), "parameters": model.num_parameters()}
