"""A student against its teacher over the samples of a held-out cache, sample by sample."""

import math
from typing import Any

from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_cell import MatrixItem, Measure
from schemas.matrix_config import DistillationTask
from trainer.matrix.item_means import mean_of
from trainer.matrix.task_kind import CellResult, TaskKind

OF_ALL_TOKENS = ("kl", "cross_entropy", "top1_agreement", "teacher_cross_entropy", "perplexity", "bits_per_byte")
HIGHER_IS_BETTER = ("top1_agreement",)
UNITS = {"top1_agreement": "", "bits_per_byte": "bits", "perplexity": "", "calibration_error": ""}


def check(task: DistillationTask) -> None:
    """Raise UserError if the cache cannot be read."""
    _manifest(task)


def data(task: DistillationTask) -> dict[str, str]:
    """The digest of the cache: the sha256 in its manifest."""
    return {"cache": _manifest(task).sha256}


def _manifest(task: DistillationTask) -> Any:
    from teacher_cache.shards.marks import read_manifest
    from teacher_cache.shards.storage import Storage

    return read_manifest(Storage(task.cache))


def run(task: DistillationTask, model: MatrixModel, backends: Backends) -> CellResult:
    """Measure a student; a document's scores are means over its own tokens, the cell's values means of these."""
    from trainer.evaluate import evaluate_folder
    from trainer.measures import SUMS
    from trainer.sample_sums import SampleSums

    by_sample = SampleSums(SUMS)
    measured = evaluate_folder(
        model.folder,
        task.cache,
        task.validation_fraction,
        task.limit,
        backends.hf.batch_size,
        backends.hf.dtype,
        trust_remote_code=model.trust_remote_code,
        align=task.align,
        by_sample=by_sample,
        key=f"models: {model.name}",
    )
    items = _items(by_sample.keys, {name: sums.tolist() for name, sums in by_sample.sums().items()})
    means = [
        _measure(name, mean_of(items, name))
        for name in ("kl", "cross_entropy", "bits_per_byte", "top1_agreement")
        if any(name in item.scores for item in items)
    ]
    whole = [_measure(f"{name} of all tokens", measured[name], name) for name in OF_ALL_TOKENS if name in measured]
    calibration = _measure("calibration_error", measured["calibration_error"])
    return CellResult([*means, *whole, calibration], items)


def _measure(name: str, value: float, of: str | None = None) -> Measure:
    of = of or name
    return Measure(name=name, value=value, unit=UNITS.get(of, "nats"), higher_is_better=of in HIGHER_IS_BETTER)


def _items(keys: list[str], sums: dict[str, list[float]]) -> list[MatrixItem]:
    """Of the documents with tokens to learn, in the order of their keys."""
    items = []
    for place, key in enumerate(keys):
        own = {name: values[place] for name, values in sums.items()}
        if own["tokens"] == 0:
            continue
        scores = {"cross_entropy": own["cross_entropy"] / own["tokens"]}
        if own["with_teacher"]:
            scores |= {name: own[name] / own["with_teacher"] for name in ("kl", "top1_agreement")}
        if own["bytes"]:
            scores["bits_per_byte"] = own["cross_entropy"] / math.log(2) / own["bytes"]
        items.append(MatrixItem(id=key, scores=scores))
    return sorted(items, key=lambda item: item.id)


DISTILLATION = TaskKind(check, data, run, measures="distillation")
