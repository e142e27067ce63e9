"""A matrix as tables in Markdown."""

from schemas.matrix_cell import ItemsFile, MatrixCell, MatrixItem, Measure, ModelEntry, TaskEntry
from schemas.matrix_file import MatrixFile
from trainer.matrix.matrix_tables import markdown
from trainer.matrix.statistics.comparing import compare

MODELS = [ModelEntry(name=name, digest=name * 64, parameters=1234567) for name in "ab"]
TASKS = [TaskEntry(name=name, digest="0" * 64, ability="x") for name in ("q|r", "s")]


def cell(model: ModelEntry, task: TaskEntry, value: float, unit: str = "") -> MatrixCell:
    items = None if unit else ItemsFile(name="x", sha256="0" * 64, items=20)
    return MatrixCell(model=model, task=task, measures=[Measure(name="acc", value=value, unit=unit)], items=items)


def test_cells_pairs_sizes_and_what_failed() -> None:
    cells = [cell(MODELS[0], TASKS[0], 1.0), cell(MODELS[1], TASKS[0], 0.05), cell(MODELS[1], TASKS[1], 2.34567, "s")]
    items = {
        (model.name, "q|r"): [MatrixItem(id=f"{n:02}", scores={"acc": float(right(n))}) for n in range(20)]
        for model, right in zip(MODELS, (lambda n: True, lambda n: n == 3), strict=True)
    }
    matrix = MatrixFile(models=MODELS, tasks=TASKS, cells=cells, missing=[("s", "a")], comparison=compare(cells, items))
    assert matrix.comparison is not None
    lines = markdown(matrix).splitlines()
    assert lines[:6] == [
        "| task | measure | a | b |",
        "| --- | --- | --: | --: |",
        "| q\\|r | acc | 100.0 % | 5.0 % |",
        "| s | acc, s | failed | 2.346 |",
        "| parameters |  | 1,234,567 | 1,234,567 |",
        "| bytes of weights |  |  |  |",
    ]
    (pair,) = matrix.comparison.pairs
    assert f"| q\\|r | a | b | {pair.words} |" in lines
    assert pair.words.startswith("a is better (+95")
