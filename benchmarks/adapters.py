"""Memory and time of training an adapter against training all weights: LoRA, QLoRA, full, in one run.

The student is a random Llama of 6 layers with tied embeddings, on rows of one sequence of random tokens with 16 stored
entries each; float32, AdamW. Time: medians of alternating steps in one process. Memory: peak of one process per arm,
of which the interpreter with its libraries is measured apart.
"""

import statistics
import sys
from functools import partial
from typing import Any

from benchmarks.support.common import FOLDER, in_own_process
from benchmarks.support.results import Row, at_most, exit_status, write_results
from benchmarks.support.steps import Step, peak_memory, step_seconds, train_step

REPETITIONS, TOKENS, K, RANK = 3, 128, 16, 16
FULL, LORA, QLORA = "all weights", "LoRA", "QLoRA, 4 bits"
NOTHING = "libraries alone"
ARMS = (FULL, LORA, QLORA)
STUDENT = FOLDER / "adapters-student"


def main() -> int:
    """Run the benchmark; returns the exit status."""
    memory = {arm: in_own_process(peak_memory, make_step, arm, 2) for arm in (NOTHING, *ARMS)}
    seconds, optimiser = in_own_process(time_and_states)
    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    own = {arm: memory[arm] - memory[NOTHING] for arm in ARMS}
    rows = [
        Row("a step of all weights", medians[FULL], "s"),
        Row("… peak memory beyond that of the libraries", own[FULL] / 2**20, "MiB"),
        Row("… state of the optimiser", optimiser[FULL] / 2**20, "MiB"),
    ]
    for arm in ARMS[1:]:
        rows += [
            Row(f"{arm} ÷ all weights, time", medians[arm] / medians[FULL], "×"),
            at_most(f"{arm} ÷ all weights, peak memory beyond that of the libraries", own[arm] / own[FULL], "×", 1.0),
            at_most(f"{arm} ÷ all weights, state of the optimiser", optimiser[arm] / optimiser[FULL], "×", 0.1),
        ]
    raw = {"seconds": seconds, "peak_memory_bytes": memory, "optimiser_bytes": optimiser, "repetitions": REPETITIONS}
    write_results("adapters", f"An adapter of rank {RANK} against all weights: {TOKENS} tokens a step", rows, raw)
    return exit_status(rows)


def write_student() -> None:
    """Write the student unless it is there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if (STUDENT / "model.safetensors").is_file():
        return
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    config = LlamaConfig(vocab_size=16_384, num_hidden_layers=6, tie_word_embeddings=True, **shape)
    LlamaForCausalLM(config).save_pretrained(STUDENT)


def make_student(arm: str) -> Any:
    """The student of an arm, as a run would load it."""
    import torch

    from schemas.train_config import TrainConfig
    from trainer.adapters.lora_layers import add_lora, load_frozen
    from trainer.student.build import load_student

    adapter = None if arm == FULL else {"r": RANK, "base_bits": 4 if arm == QLORA else None}
    student = {"checkpoint": str(STUDENT), "adapter": adapter}
    config = TrainConfig.model_validate({"data": {"cache": "none"}, "student": student, "output": "none"})
    torch.manual_seed(0)
    if config.student.adapter is None:
        return load_student(STUDENT, config.student).train()
    model = load_frozen(STUDENT, config, bf16=False)
    add_lora(model, config.student.adapter, seed=0)
    return model.train()


def time_and_states() -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of steps, and bytes of AdamW's two averages, by arm."""
    states = {}
    for arm in ARMS:
        trained = [each for each in make_student(arm).parameters() if each.requires_grad]
        states[arm] = 2 * sum(each.numel() * each.element_size() for each in trained)
    return step_seconds(make_step, list(ARMS), REPETITIONS), states


def make_step(arm: str) -> Step:
    """A function that takes one optimiser step of a fresh student."""
    import torch

    from schemas.cache_config import CaptureConfig, LogitsCapture
    from schemas.train_config import LossConfig
    from trainer.losses.objective import Objective
    from trainer.run.quiet import quiet_transformers

    quiet_transformers()
    objective = Objective(LossConfig(), CaptureConfig(logits=LogitsCapture(k=K, temperatures=[1.0]), draws=None))
    write_student()
    if arm == NOTHING:
        import bitsandbytes  # noqa: F401
        import peft  # noqa: F401

        return lambda: None
    student = make_student(arm)
    optimizer = torch.optim.AdamW([each for each in student.parameters() if each.requires_grad], lr=1e-4)
    entries = torch.randn(1, TOKENS, K).log_softmax(-1) - 0.1
    batch = {
        "input_ids": torch.randint(3, 16_384, (1, TOKENS)),
        "loss_mask": torch.ones(1, TOKENS, dtype=torch.bool),
        "attention_mask": torch.ones(1, TOKENS, dtype=torch.bool),
        "ids": torch.rand(1, TOKENS, 16_384).topk(K).indices,
        "logprobs": entries.sort(descending=True).values,
        "next_logprob": torch.full((1, TOKENS), -5.0),
        "log_partition": torch.zeros(1, TOKENS, 1),
    }

    return partial(train_step, student, objective, optimizer, batch)


if __name__ == "__main__":
    sys.exit(main())
