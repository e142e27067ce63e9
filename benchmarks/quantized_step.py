"""Cost of a training step under three bits: the same step with 16-bit weights, frozen scales, learned scales.

The student is the real teacher's 30 layers, from the shared cache, with gradient checkpointing, float32, AdamW, one
real sequence of 1,024 tokens. Time: medians of alternating steps in one process. Memory: peak of one process per arm.
"""

import statistics
import sys
from functools import partial
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import in_own_process, shared_cache
from benchmarks.support.results import Row, at_most, exit_status, write_results
from benchmarks.support.steps import Step, peak_memory, step_seconds, train_step

REPETITIONS, TOKENS = 5, 1024
PLAIN, FROZEN, LEARNED, ROUNDED = "16 bits", "3 bits", "3 bits, learned scales", "3 bits, inputs of 8 bits"
ARMS = (PLAIN, FROZEN, LEARNED, ROUNDED)
LIMITS = {FROZEN: (1.15, 1.10)}


def main() -> int:
    """Run the benchmark; returns the exit status."""
    shared_cache()
    memory = {arm: in_own_process(peak_memory, make_step, arm, 2) for arm in ARMS}
    seconds = in_own_process(step_seconds, make_step, list(ARMS), REPETITIONS)
    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    rows = [Row("a step with 16-bit weights", medians[PLAIN], "s"), Row("… peak memory", memory[PLAIN] / 2**30, "GiB")]
    for arm in ARMS[1:]:
        time_limit, memory_limit = LIMITS.get(arm, (None, None))
        rows.append(row(f"{arm} ÷ 16 bits, time", medians[arm] / medians[PLAIN], time_limit))
        rows.append(row(f"{arm} ÷ 16 bits, peak memory", memory[arm] / memory[PLAIN], memory_limit))
    raw = {"seconds": seconds, "peak_memory_bytes": memory, "repetitions": REPETITIONS}
    write_results("quantized_step", f"A step under quantisation: 135 M parameters, {TOKENS:,} tokens", rows, raw)
    return exit_status(rows)


def row(name: str, ratio: float, limit: float | None) -> Row:
    """A ratio, held to a limit if there is one."""
    return Row(name, ratio, "×") if limit is None else at_most(name, ratio, "×", limit)


def make_step(arm: str) -> Step:
    """A function that takes one optimiser step of a fresh student."""
    import torch

    from schemas.train_config import ActivationsConfig, LossConfig
    from trainer.data.batches import to_tensors
    from trainer.data.open_caches import open_cache, read_capture
    from trainer.losses.objective import Objective
    from trainer.quantization.fake_activations import round_activations
    from trainer.quantization.fake_quantizer import FakeQuantizer
    from trainer.quantization.grid import Grid
    from trainer.quantization.sites import find_sites
    from trainer.student.build import load_model

    url = str(shared_cache()[0])
    student: Any = load_model(make_teacher(), key="student", dtype=torch.float32)
    student.train()
    student.gradient_checkpointing_enable({"use_reentrant": False})
    if arm != PLAIN:
        grid = Grid(3, 64)
        sites = find_sites(student, grid)
        names = [reader.parameter for site in sites for reader in site.readers]
        scales = {name: grid.scales(student.get_parameter(name).detach()).bfloat16() for name in names}
        FakeQuantizer(student, scales, grid, learned=arm == LEARNED)
        if arm == ROUNDED:
            round_activations(student, sites, ActivationsConfig(bits=8), {})
    cache = open_cache(url, ("tokens", "logits"))
    objective = Objective(LossConfig(), read_capture(url))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    batch = {name: each[:, :TOKENS] for name, each in to_tensors(cache.read_rows([[0]]), packed=False).items()}

    return partial(train_step, student, objective, optimizer, batch)


if __name__ == "__main__":
    sys.exit(main())
