"""Cost of a distillation step from a cache, against fine-tuning on hard labels and online distillation.

The same student (22 of the real teacher's 30 layers), the same real sequence of 2,048 tokens, float32, AdamW:

- hard labels: transformers' own loss, ``student(input_ids, labels=…)``.
- from the cache: the batch is read, verified and decoded, then TLA on the top 64 of every row.
- online: the teacher is resident; its forward pass computes all logits, and the KL is over the whole vocabulary.

Time: medians of alternating steps in one process. Memory: peak of one process per arm.
"""

import statistics
import sys
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import in_own_process, shared_cache
from benchmarks.support.results import Row, at_most, exit_status, write_results
from benchmarks.support.steps import Step, peak_memory, step_seconds

REPETITIONS = 5
LAYERS = [*range(13), *range(21, 30)]
HARD, CACHED, ONLINE = "hard labels", "from the cache", "online, teacher resident"
ARMS = (HARD, CACHED, ONLINE)
MAX_OF_HARD = 1.10


def main() -> int:
    """Run the benchmark; returns the exit status."""
    shared_cache()
    memory = {arm: in_own_process(peak_memory, make_step, arm, 2) for arm in ARMS}
    seconds = in_own_process(step_seconds, make_step, list(ARMS), REPETITIONS)
    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    rows = [
        Row("a step on hard labels", medians[HARD], "s"),
        at_most("from the cache ÷ hard labels, time", medians[CACHED] / medians[HARD], "×", MAX_OF_HARD),
        Row("online ÷ hard labels, time", medians[ONLINE] / medians[HARD], "×"),
        Row("online ÷ from the cache, time", medians[ONLINE] / medians[CACHED], "×"),
        Row("peak memory on hard labels", memory[HARD] / 2**30, "GiB"),
        at_most("from the cache ÷ hard labels, peak memory", memory[CACHED] / memory[HARD], "×", MAX_OF_HARD),
        Row("online ÷ hard labels, peak memory", memory[ONLINE] / memory[HARD], "×"),
        Row("online ÷ from the cache, peak memory", memory[ONLINE] / memory[CACHED], "×"),
    ]
    raw = {"seconds": seconds, "peak_memory_bytes": memory, "repetitions": REPETITIONS}
    title = "A training step: 106 M parameters, 2,048 tokens, V = 49,152, float32"
    write_results("step_cost", title, rows, raw)
    return exit_status(rows)


def make_step(arm: str) -> Step:
    """A function that takes one optimiser step of a fresh student."""
    import torch

    from schemas.train_config import LossConfig
    from trainer.data.batches import to_tensors
    from trainer.data.open_caches import open_cache, read_capture
    from trainer.losses.objective import Objective
    from trainer.losses.teacher_rows import teacher_rows
    from trainer.student.build import load_model
    from trainer.student.forward import masked_hidden, output_head

    url = str(shared_cache()[0])
    student: Any = load_model(make_teacher(), key="student", dtype=torch.float32)
    student.model.layers = torch.nn.ModuleList(student.model.layers[i] for i in LAYERS)
    student.train()
    teacher: Any = None
    if arm == ONLINE:
        teacher = load_model(make_teacher(), key="teacher", dtype=torch.float32).eval()
    cache = open_cache(url, ("tokens", "logits") if arm == CACHED else ("tokens",))
    objective = Objective(LossConfig(), read_capture(url))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)

    def loss() -> torch.Tensor:
        batch = to_tensors(cache.read_rows([[0]]), packed=False)
        if arm == CACHED:
            hidden_ND = masked_hidden(student, batch)
            total, _ = objective.head_terms(hidden_ND, output_head(student), teacher_rows(batch), progress=0.0)
            return total / len(hidden_ND)
        ids = batch["input_ids"]
        if arm == HARD:
            return student(input_ids=ids, labels=ids, use_cache=False).loss
        with torch.no_grad():
            log_p = teacher(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(dim=-1)
        log_q = student(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(dim=-1)
        return torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    sys.exit(main())
