"""Pruning of FFN channels: KL to the teacher on held-out code, without any training, by how channels are chosen.

SmolLM2-135M loses 12.5 % and 25 % of the channels of each FFN (1536 → 1344, 1152): the least active ones, as
``student.ffn`` chooses them, random ones, and those with the smallest weights. A seed chooses the random channels and
the texts that activity is measured on. The KL is of whole distributions. One arm also weighs activity by the norm of
the column that reads a channel; for students of fewer layers, activity is measured in the whole teacher and in the
student. Calibration and evaluation texts are of different files.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real_teacher import make_teacher
from benchmarks.support.corpus import hold_out, standard_library
from benchmarks.support.results import Row, at_most, exit_status, write_results
from schemas.train_config import FfnConfig
from trainer.student.build import pruned_config, pruned_state
from trainer.student.ffn_channels import ffn_widths, most_active, remove_channels
from trainer.student.ffn_importance import channel_sums
from trainer.student.ffns import Ffn, find_ffns

SHARES = (0.125, 0.25)
SEEDS = (0, 1, 2)
LENGTH = 256  # tokens of a text
CALIBRATION_TEXTS, HELD_OUT_TEXTS = 32, 8
BATCH = 4
LAYERS = [*range(14), *range(22, 30)]  # of students of fewer layers
Importance = list[torch.Tensor]  # of each FFN, [1, F]


def main() -> int:
    """Measure every arm; returns the exit status."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.ffn_pruning", description=str(__doc__).splitlines()[0]
    ).parse_args()
    folder = make_teacher()
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    training, held_out = (texts(folder, modules) for modules in hold_out(standard_library()))
    judge = Judge(teacher, held_out[:HELD_OUT_TEXTS])
    active = [measured(teacher, calibration(training, seed)) for seed in SEEDS]
    arms: dict[str, list[Importance]] = {
        "least active": active,
        "random": [random_importance(teacher, seed) for seed in SEEDS],
        "smallest weights": [weight_importance(teacher)],
        "least active × norm of the reading column": [by_column(teacher, one) for one in active],
    }
    kl: dict[str, dict[str, list[float]]] = {}
    for share in SHARES:
        for arm, ways in arms.items():
            found = [judge.kl(pruned(teacher, importance, share)) for importance in ways]
            kl.setdefault(str(share), {})[arm] = found
            print(share, arm, found, flush=True)
    shallow = of_layers(teacher)
    depth = {f"{len(LAYERS)} of 30 layers: KL": judge.kl(shallow)}
    own = measured(shallow, calibration(training, 0))
    for name, importance in (("teacher", [active[0][layer] for layer in LAYERS]), ("student", own)):
        depth[f"… without the channels that are least active in the {name}, 12.5 %"] = judge.kl(
            pruned(shallow, importance, SHARES[0])
        )
    print(depth, flush=True)
    sizes = {str(share): pruned(teacher, active[0], share).num_parameters() for share in SHARES}
    rows = table(kl, depth, sizes, teacher.num_parameters())
    raw = {
        "kl": kl,
        "fewer layers": depth,
        "parameters": {"before": teacher.num_parameters(), **sizes},
        "seeds": SEEDS,
        "calibration tokens": CALIBRATION_TEXTS * LENGTH,
        "held-out tokens": HELD_OUT_TEXTS * (LENGTH - 1),
    }
    write_results("ffn_pruning", "Pruned FFN channels of SmolLM2-135M, without training; held-out code", rows, raw)
    return exit_status(rows)


def texts(teacher: Path, modules: list[Path]) -> torch.Tensor:
    """The first LENGTH tokens of each module that has as many, int64 [N, LENGTH]."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    ids = [
        tokenizer(module.read_text(encoding="utf-8", errors="ignore")[: 16 * LENGTH])["input_ids"] for module in modules
    ]
    return torch.tensor([one[:LENGTH] for one in ids if len(one) >= LENGTH])


def calibration(training: torch.Tensor, seed: int) -> list[dict[str, torch.Tensor]]:
    """Batches of random training texts."""
    chosen = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))[:CALIBRATION_TEXTS]
    return [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}
        for ids in training[chosen].split(BATCH)
    ]


def measured(model: Any, batches: list[dict[str, torch.Tensor]]) -> Importance:
    """Activity of each channel."""
    return [one.abs_EF for one in channel_sums(model, find_ffns(model), batches)]


def random_importance(model: Any, seed: int) -> Importance:
    """Random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, ffn.width, generator=generator) for ffn in find_ffns(model)]


def weight_importance(model: Any) -> Importance:
    """Norm of all weights of a channel: rows of gate and up projection, column of the down projection."""
    return [
        torch.stack([norms(ffn, name) for name in (*ffn.writers, ffn.reader)]).norm(dim=0, keepdim=True)
        for ffn in find_ffns(model)
    ]


def by_column(model: Any, active: Importance) -> Importance:
    """Activity times the norm of the down projection's column."""
    return [one * norms(ffn, ffn.reader) for ffn, one in zip(find_ffns(model), active, strict=True)]


def norms(ffn: Ffn, name: str) -> torch.Tensor:
    """Norm of each channel's weights in one of an FFN's layers, [F]."""
    return getattr(ffn.module, name).weight.detach().double().norm(dim=0 if name == ffn.reader else 1)


def pruned(model: Any, importance: Importance, share: float) -> Any:
    """A copy without that share of the channels, those of least importance."""
    model = copy.deepcopy(model)
    ffns = find_ffns(model)
    (width,) = ffn_widths(ffns, FfnConfig(remove=share)).values()
    for ffn, one in zip(ffns, importance, strict=True):
        remove_channels(ffn, most_active(one, width))
    return model


def of_layers(teacher: Any) -> Any:
    """A student of LAYERS."""
    student = AutoModelForCausalLM.from_config(pruned_config(teacher.config, LAYERS), dtype=torch.float32)
    student.load_state_dict(pruned_state(teacher.state_dict(), LAYERS))
    return student.eval()


class Judge:
    """Compares students with the teacher on held-out texts."""

    def __init__(self, teacher: Any, held_out: torch.Tensor) -> None:
        self.held_out = held_out.split(BATCH)
        self.teacher = [one.log_softmax(-1) for one in self._logits(teacher)]

    @torch.no_grad()
    def kl(self, student: Any) -> float:
        """Mean KL(teacher ‖ student), nats a token."""
        each = [
            (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1).mean().item()
            for log_p, logits in zip(self.teacher, self._logits(student), strict=True)
        ]
        return statistics.mean(each)

    @torch.no_grad()
    def _logits(self, model: Any) -> Iterator[torch.Tensor]:
        for ids in self.held_out:
            yield model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)


def table(
    kl: dict[str, dict[str, list[float]]], depth: dict[str, float], sizes: dict[str, int], before: int
) -> list[Row]:
    """KL of every arm by share removed, and sizes."""
    rows = []
    for share, arms in kl.items():
        size, best_random = sizes[share], min(arms["random"])
        rows.append(Row(f"{float(share):.1%} of each FFN's channels removed: parameters", size))
        rows.append(Row(f"… of the teacher's {before:,}", 100 * (size / before - 1), "%"))
        for arm, values in arms.items():
            spread = f" ({min(values):.3g} … {max(values):.3g})" if len(values) > 1 else ""
            rows.append(Row(f"… KL, {arm}{spread}", statistics.mean(values), "nat"))
        worst = max(arms["least active"])
        rows.append(at_most("… KL, least active ÷ random: worst seed ÷ best seed", worst / best_random, "", 1))
    return rows + [Row(name, value, "nat") for name, value in depth.items()]


if __name__ == "__main__":
    sys.exit(main())
