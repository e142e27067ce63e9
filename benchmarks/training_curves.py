"""``python -m benchmarks.training_curves``: train with all four losses and draw ``metrics.jsonl`` for the docs.

A real teacher reads a little Python with the transformers engine; a student of 22 of its 30 layers trains on that cache
for a few minutes. The run is kept in ``runs/training-curves``: a second call continues it, or only draws it again.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.support.corpus import hold_out, standard_library, write_code
from benchmarks.support.installed import run_installed
from benchmarks.support.pictures import save_picture
from benchmarks.support.students import CACHE_CONFIG, TRAIN_CONFIG, options

FOLDER = Path("runs/training-curves")
PICTURE = Path("docs/pictures/training-curves.png")
MODULES, STEPS = 24, 40
PANELS = {
    "tla": "TLA: KL(teacher ‖ student), nat",
    "lhsm": "LHSM: MSE of hidden states",
    "apc": "APC: KL of attention rows, nat",
    "asr": "ASR: mean |activation|",
}
CAPTURE = "{hidden: {layers: [0.25, 0.5, 0.75]}, attention: {heads: 3, keys: 32}}"
LOSSES = "{lhsm: {}, apc: {}, asr: {}}"


def main() -> None:
    """Train, unless it was done, and write the picture."""
    teacher = make_teacher()
    write_code(FOLDER / "code", hold_out(standard_library())[0][:MODULES], 1800)
    cache, output = FOLDER / "cache", FOLDER / "student"
    caching = [
        f"teacher.path={teacher}",
        "engine={kind: transformers, device: cpu}",
        f"corpus.sources=[{{path: {FOLDER / 'code'}, format: text, pattern: '*.py', layer: code}}]",
        f"capture={CAPTURE}",
        f"output.path={cache}",
    ]
    run_installed("teacher-cache", "run", CACHE_CONFIG, *options(caching))
    training = [
        f"data={{cache: {cache}, validation_fraction: 0.15}}",
        f"student.teacher={teacher}",
        f"losses={LOSSES}",
        f"loop={{max_steps: {STEPS}, micro_batch_size: 2, validate_every: 5, save_every: {STEPS}}}",
        f"output={output}",
    ]
    run_installed("train-student", "run", TRAIN_CONFIG, *options(training))
    draw(read_metrics(output / "metrics.jsonl"), PICTURE)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trailing_means(values: list[float], steps: int = 8) -> list[float]:
    """Of each value and those up to ``steps`` - 1 before it."""
    return [statistics.mean(values[max(0, i + 1 - steps) : i + 1]) for i in range(len(values))]


def draw(metrics: list[dict[str, Any]], path: Path) -> None:
    """A panel for each loss term before its weight (thin: each step), one for the weights and one for validation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [line for line in metrics if "tla" in line]
    x = [line["step"] for line in steps]
    figure, grid = pyplot.subplots(2, 3, figsize=(10, 5), layout="constrained", sharex=True)
    panels = grid.T.flatten()
    for panel, (name, title) in zip(panels, PANELS.items(), strict=False):
        values = [line[name] for line in steps]
        panel.plot(x, values, linewidth=0.8, alpha=0.4, color="tab:blue")
        panel.plot(x, trailing_means(values), linewidth=1.6, color="tab:blue")
        panel.set_title(title, fontsize=10)
    panels[4].set_title("weights of the terms", fontsize=10)
    for name in PANELS:
        panels[4].plot(x, [line[f"{name}_weight"] for line in steps], label=name, linewidth=1.2)
    panels[4].legend(fontsize=8)
    validated = [line for line in metrics if "eval_kl" in line]
    panels[5].plot(
        [line["step"] for line in validated], [line["eval_kl"] for line in validated], marker="o", markersize=4
    )
    panels[5].set_title("validation: KL(teacher ‖ student), nat", fontsize=10)
    for panel in grid[-1]:
        panel.set_xlabel("step")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
    save_picture(figure, path)


if __name__ == "__main__":
    main()
