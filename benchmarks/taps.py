"""Cost of the losses on the student's internals: a training step with all four losses against one with TLA only.

A random Llama of 60 M parameters and a batch of one row of 512 tokens, in the form a cache delivers: top 64 of every
token, int8 hidden states of three layers at every token, attention rows of three attention heads at every eighth. Time:
medians of alternating steps in one process. Memory: peak of one process per arm.
"""

import statistics
import sys
from typing import Any

import numpy as np

from benchmarks.support.common import in_own_process
from benchmarks.support.results import Row, at_most, exit_status, write_results
from benchmarks.support.steps import Step, peak_memory, step_seconds

TOKENS, K, VOCABULARY, WIDTH = 512, 64, 49_152, 576
KEYS, HEADS = 32, 3
REPETITIONS = 7
ARMS: dict[str, dict[str, Any]] = {"tla": {}, "all": {"lhsm": {}, "apc": {}, "asr": {}}}


def main() -> int:
    """Run the benchmark; returns the exit status."""
    memory = {arm: in_own_process(peak_memory, make_step, arm, 3) for arm in ARMS}
    seconds = in_own_process(step_seconds, make_step, list(ARMS), REPETITIONS)
    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    rows = [
        Row("a step with TLA only", medians["tla"], "s"),
        at_most("all four losses ÷ TLA only, time", medians["all"] / medians["tla"], "×", 1.25),
        Row("peak memory with TLA only", memory["tla"] / 2**30, "GiB"),
        at_most("all four losses ÷ TLA only, peak memory", memory["all"] / memory["tla"], "×", 1.15),
    ]
    raw = {"seconds": seconds, "peak_memory_bytes": memory, "tokens": TOKENS, "repetitions": REPETITIONS}
    write_results("taps", "Losses on the student's inside: 60 M parameters, 512 tokens, float32", rows, raw)
    return exit_status(rows)


def make_step(arm: str) -> Step:
    """A function that takes one optimiser step of a fresh student."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from schemas.train_config import LossConfig
    from trainer.losses.objective import Objective
    from trainer.losses.teacher_rows import teacher_rows
    from trainer.student.forward import masked_hidden, output_head

    torch.manual_seed(0)
    student = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=1536,
            num_hidden_layers=9,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
    )
    losses = LossConfig.model_validate(ARMS[arm])
    manifest = make_manifest()
    objective = Objective(losses, manifest.capture)
    objective.attach(student, manifest, seed=0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    batch = make_batch()
    counts = dict(zip(objective.rows, objective.row_counts(batch).tolist(), strict=True))

    def step() -> None:
        with objective.recording() as recorded:
            hidden_ND = masked_hidden(student, batch)
        head_loss, _ = objective.head_terms(hidden_ND, output_head(student), teacher_rows(batch), progress=0.5)
        terms = objective.feature_terms(recorded, batch, progress=0.5)
        loss = head_loss / counts["loss_mask"]
        for term in terms:
            loss = loss + term.weight * term.total / counts[term.rows]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_manifest() -> Any:
    """A stub of a cache's manifest with what the losses read."""
    from types import SimpleNamespace

    from schemas.cache_config import AttentionCapture, CaptureConfig, HiddenCapture

    capture = CaptureConfig(hidden=HiddenCapture(), attention=AttentionCapture(heads=HEADS, keys=KEYS))
    return SimpleNamespace(capture=capture, teacher=SimpleNamespace(num_layers=30, hidden_size=WIDTH))


def make_batch() -> dict[str, Any]:
    """A batch of random values, with the shapes and dtypes of a cache's."""
    import torch

    from schemas.cache_config import HiddenCapture
    from teacher_cache.signals.hidden.capture import quantise

    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 3, (TOKENS, VOCABULARY)).astype(np.float32))
    all_logprobs = logits.log_softmax(dim=-1)
    logprobs, ids = all_logprobs.topk(K)
    mask = torch.ones(1, TOKENS, dtype=torch.bool)
    mask[0, -1] = False
    batch = {
        "input_ids": torch.from_numpy(rng.integers(0, VOCABULARY, (1, TOKENS))),
        "attention_mask": torch.ones(1, TOKENS, dtype=torch.bool),
        "loss_mask": mask,
        "ids": ids.int()[None],
        "logprobs": logprobs[None],
        "next_logprob": torch.zeros(1, TOKENS),
        "log_partition": torch.stack([(all_logprobs / t).logsumexp(dim=-1) for t in (1.0, 3.0)], dim=-1)[None],
    }
    layers = [quantise(torch.from_numpy(rng.normal(0, 1, (TOKENS, WIDTH))), HiddenCapture()) for _ in range(3)]
    names = ("values", "scales", "outlier_index", "outliers")
    batch |= {f"hidden_{n}": torch.stack(part, dim=1) for n, part in zip(names, zip(*layers, strict=True), strict=True)}
    batch |= {"hidden_batch_row": torch.zeros(TOKENS, dtype=torch.long), "hidden_column": torch.arange(TOKENS)}
    column = torch.arange(KEYS, TOKENS, 8)
    weights = torch.from_numpy(rng.dirichlet(np.full(KEYS + 1, 0.2), (len(column), HEADS))[:, :, :KEYS])
    batch |= {
        "attention_batch_row": torch.zeros_like(column),
        "attention_column": column,
        "attention_first_column": torch.zeros_like(column),
        "attention_sample": torch.zeros_like(column),
        "attention_weights": weights.float(),
        "attention_keys": torch.arange(KEYS).expand(len(column), HEADS, KEYS),
    }
    return batch


if __name__ == "__main__":
    sys.exit(main())
