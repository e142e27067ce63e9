"""The figures of distillation, document by document."""

from pathlib import Path

import pytest

from schemas.errors import UserError
from schemas.matrix_base import Backends, HfSettings, MatrixModel
from schemas.matrix_config import DistillationTask
from support.small_matrix import write_small_matrix
from trainer.evaluate import evaluate_folder
from trainer.matrix.distillation_task import DISTILLATION


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_matrix(tmp_path_factory.mktemp("distillation"))


def test_documents_count_the_same_and_figures_of_all_tokens_are_beside_them(folder: Path) -> None:
    task = DistillationTask(kind="distillation", name="x", cache=str(folder / "cache"))
    model = MatrixModel(name="m", folder=str(folder / "student-1"))
    result = DISTILLATION.run(task, model, Backends(hf=HfSettings(batch_size=3)))
    found = {measure.name: measure for measure in result.measures}
    whole = evaluate_folder(model.folder, task.cache, batch_size=3)
    for name in ("kl", "cross_entropy", "bits_per_byte", "top1_agreement"):
        assert found[f"{name} of all tokens"].value == whole[name]
    assert found["calibration_error"].value == whole["calibration_error"]
    assert found["kl"].value != whole["kl"], "documents differ in length"
    assert [measure.name for measure in result.measures][:4] == [
        "kl",
        "cross_entropy",
        "bits_per_byte",
        "top1_agreement",
    ]
    assert {name for name, measure in found.items() if measure.higher_is_better} == {
        "top1_agreement",
        "top1_agreement of all tokens",
    }
    assert result.items is not None
    assert len(result.items) == whole["samples"]
    for name in ("kl", "cross_entropy", "bits_per_byte", "top1_agreement"):
        mean = sum(item.scores[name] for item in result.items) / len(result.items)
        assert found[name].value == pytest.approx(mean, rel=1e-12)


def test_items_of_two_models_pair(folder: Path) -> None:
    task = DistillationTask(kind="distillation", name="x", cache=str(folder / "cache"))
    ids = [
        [item.id for item in DISTILLATION.run(task, MatrixModel(name="m", folder=str(folder / name)), Backends()).items]
        for name in ("student-1", "student-2")
    ]
    assert ids[0] == ids[1]


def test_the_cache_decides_by_its_digest(folder: Path) -> None:
    task = DistillationTask(kind="distillation", name="x", cache=str(folder / "cache"))
    (digest,) = DISTILLATION.data(task).values()
    assert len(digest) == 64
    with pytest.raises(UserError, match="none"):
        DISTILLATION.check(task.model_copy(update={"cache": str(folder / "none")}))
