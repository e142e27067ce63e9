"""What a training run has written to ``metrics.jsonl``."""

import json
from pathlib import Path
from typing import Any


def read_metrics(output: str | Path, kind: str = "step") -> list[dict[str, Any]]:
    """The lines of the run in ``output`` that have ``kind``; default: all."""
    records = [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if kind in record]


def losses(output: str | Path) -> list[tuple[int, float]]:
    """(step, loss) of every line."""
    return [(line["step"], line["loss"]) for line in read_metrics(output, "loss")]
