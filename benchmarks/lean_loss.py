"""Cost of the chunked loss at the output head, against a plain [N, V] implementation and plain cross-entropy.

4,096 rows, 151,936 tokens, width 1,024, float32, top 64 with a bucket at T = 1; from hidden states to gradients with
respect to hidden states and output head. *Plain* is the same loss by autograd over full logits. Every measurement runs
in its own process, alternating between arms. Memory is the peak beyond hidden states, output head and cached rows; time
is the median over a few repetitions.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.support.common import in_own_process
from benchmarks.support.results import Row, at_most, exit_status, write_results

ROWS, VOCABULARY, WIDTH, K = 4_096, 151_936, 1_024, 64
CAPTURE = {"logits": {"k": K, "temperatures": [1.0]}}
ARMS = ("plain TLA", "chunked TLA", "plain cross-entropy", "chunked cross-entropy", "chunked TLA and cross-entropy")


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lean_loss", description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repetitions", type=int, default=3, help="processes for each arm (default: 3)")
    arguments = parser.parse_args()
    measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(arguments.repetitions):
        for arm in ARMS:
            measured[arm].append(in_own_process(measure, arm, arguments.rows))
            print(arm, measured[arm][-1], flush=True)
    seconds = {arm: statistics.median(run["seconds"] for run in runs) for arm, runs in measured.items()}
    memory = {arm: max(run["bytes"] for run in runs) for arm, runs in measured.items()}
    rows = [
        Row("peak memory, plain TLA", memory["plain TLA"] / 2**30, "GiB"),
        Row("peak memory, chunked TLA (most of it the head's gradient)", memory["chunked TLA"] / 2**30, "GiB"),
        at_most("chunked TLA ÷ plain TLA, peak memory", memory["chunked TLA"] / memory["plain TLA"], "×", 1 / 8),
        at_most("chunked TLA ÷ plain TLA, time", seconds["chunked TLA"] / seconds["plain TLA"], "×", 1.1),
        Row("chunked TLA ÷ plain cross-entropy, time", seconds["chunked TLA"] / seconds["plain cross-entropy"], "×"),
        Row(
            "chunked TLA ÷ chunked cross-entropy, time",
            seconds["chunked TLA"] / seconds["chunked cross-entropy"],
            "×",
        ),
        Row(
            "chunked TLA and cross-entropy ÷ chunked TLA, time",
            seconds["chunked TLA and cross-entropy"] / seconds["chunked TLA"],
            "×",
        ),
    ]
    raw = {"rows": arguments.rows, "vocabulary": VOCABULARY, "width": WIDTH, "measured": measured}
    title = f"Loss behind the output head: {arguments.rows:,} rows × {VOCABULARY:,} tokens, width {WIDTH:,}, float32"
    write_results("lean_loss", title, rows, raw)
    return exit_status(rows)


def measure(arm: str, n_rows: int) -> dict[str, float]:
    """Seconds and peak bytes of one forward and backward pass."""
    import time

    import torch

    from benchmarks.support.peak_memory import PeakMemory

    torch.manual_seed(0)
    hidden = torch.randn(n_rows, WIDTH).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH).mul_(WIDTH**-0.5).requires_grad_()
    loss = LOSSES[arm](hidden, weight, cached_rows(n_rows))
    with PeakMemory() as peak:
        start = time.perf_counter()
        loss().backward()
        seconds = time.perf_counter() - start
    assert hidden.grad is not None
    assert weight.grad is not None
    return {"seconds": seconds, "bytes": peak.bytes, "gradient_norm": weight.grad.norm().item()}


def cached_rows(n_rows: int, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """Random rows as read from a cache: ids, log-probabilities, log-partition; the top 64 hold 90 % of the mass."""
    import torch

    ids = torch.randint(0, vocabulary // K, (n_rows, K)) * K + torch.arange(K)
    falling = torch.arange(K).mul(-0.2).log_softmax(dim=0) + torch.tensor(0.9).log()
    next_ids = ids[:, 3].clone()
    return {"ids": ids, "logprobs": falling.expand(n_rows, K), "zero": torch.zeros(n_rows), "next": next_ids}


def plain_tla(hidden: Any, weight: Any, rows: dict[str, Any]) -> Callable[[], Any]:
    """The sparse KL with a bucket, by autograd over full logits."""
    import torch

    from trainer.losses.targets import top_k_target

    target = top_k_target(rows["ids"], rows["logprobs"], rows["zero"], 1.0, len(weight))
    assert target.rest_N is not None
    rest_N = target.rest_N

    def loss() -> torch.Tensor:
        logits = hidden @ weight.T
        log_z = torch.logsumexp(logits, dim=1)
        log_q = logits.gather(1, target.ids_NK) - log_z[:, None]
        stored = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, target.ids_NK, True)
        log_q_rest = torch.logsumexp(logits.masked_fill(stored, -torch.inf), dim=1) - log_z
        cross_entropy = -(target.weights_NK * log_q).sum(dim=1) - rest_N * log_q_rest
        return (cross_entropy - target.entropy_N).sum()

    return loss


def plain_cross_entropy(hidden: Any, weight: Any, rows: dict[str, Any]) -> Callable[[], Any]:
    """torch's own cross-entropy over full logits."""
    import torch

    return lambda: torch.nn.functional.cross_entropy(hidden @ weight.T, rows["next"], reduction="sum")


def chunked(*names: str) -> Callable[[Any, Any, dict[str, Any]], Callable[[], Any]]:
    """The project's chunked pass over the output head, with the losses ``names``."""

    def make(hidden: Any, weight: Any, rows: dict[str, Any]) -> Callable[[], Any]:
        from schemas.cache_config import CaptureConfig
        from schemas.train_config import LossConfig
        from teacher_cache.output_head import OutputHead
        from trainer.losses.objective import Objective
        from trainer.losses.teacher_rows import TeacherRows

        weights = {name: {"weight": dict.fromkeys(("start", "end"), int(name in names))} for name in NAMES}
        objective = Objective(LossConfig.model_validate(weights), CaptureConfig.model_validate(CAPTURE))
        zero = rows["zero"]
        teacher = TeacherRows(rows["ids"], rows["logprobs"], zero[:, None], rows["next"], zero)
        return lambda: objective.head_terms(hidden, OutputHead(weight), teacher, 0.0)[0]

    return make


NAMES = ("tla", "cross_entropy")
LOSSES = {
    "plain TLA": plain_tla,
    "chunked TLA": chunked("tla"),
    "plain cross-entropy": plain_cross_entropy,
    "chunked cross-entropy": chunked("cross_entropy"),
    "chunked TLA and cross-entropy": chunked(*NAMES),
}


if __name__ == "__main__":
    sys.exit(main())
