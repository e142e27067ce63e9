"""Outputs of training runs that were never trained: files as a run writes them."""

import json
import math
from pathlib import Path
from typing import Any

from schemas.run_file import RunFile
from schemas.train_config import TrainConfig

TERMS = ("tla", "lhsm")


def metric_lines(steps: int, spike_at: int = 0, first: int = 1, level: float = 0.0) -> list[dict[str, Any]]:
    """A line for each step, and a validation every tenth."""
    lines: list[dict[str, Any]] = []
    for step in range(first, steps + 1):
        wobble = 0.1 * math.sin(step * 12.9898)
        terms = {term: level + 2 * math.exp(-2 * step / steps) + wobble for term in TERMS}
        lines.append(
            {
                "step": step,
                **terms,
                "loss": 99.0 if step == spike_at else sum(terms.values()),
                "data_wait": 0.01,
                "step_seconds": 0.5,
                "data_wait_share": 0.02,
                **{f"{term}_weight": 1 - 0.5 * step / steps for term in TERMS},
                **{f"{term}_weighted": value for term, value in terms.items()},
                "grad_norm": 1 + wobble,
                "learning_rate": 3e-4 * (1 - step / steps),
                "rows": 8 * step,
                "tokens": 4096 * step,
                "peak_memory_bytes": 3 * 2**30,
                "epoch": step / steps,
            }
        )
        if step % 10 == 0:
            lines.append({"step": step, "eval_kl": level + 1 / step, "eval_top1": 0.5, "epoch": step / steps})
    return lines


def write_run(
    folder: Path,
    lines: list[dict[str, Any]],
    tail: str = "",
    lr: float = 3e-4,
    planned: int = 40,
    ended: str | None = None,
    samples: list[dict[str, Any]] | None = None,
    output: str = "runs/a",
) -> Path:
    """Write the output of a run; ``tail`` ends metrics.jsonl, ``ended`` is the summary's."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    tree = {"data": {"cache": "c"}, "student": {"checkpoint": "s"}, "optimizer": {"lr": lr}, "output": output}
    record = RunFile(
        id="0123456789ab",
        started="2026-12-01T00:00:00+00:00",
        planned_steps=planned,
        rows_per_step=8,
        ranks=1,
        parameters=1234567,
        device="a CPU",
        config=TrainConfig.model_validate(tree).model_dump(mode="json"),
    )
    (folder / "run.json").write_text(record.model_dump_json())
    if ended is not None:
        steps = max(line["step"] for line in lines)
        (folder / "summary.json").write_text(json.dumps({"ended": ended, "steps": steps}, indent=1))
    if samples:
        (folder / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
    return folder
