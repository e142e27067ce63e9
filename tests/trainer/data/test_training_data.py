"""Validation on a cache of its own: decoded by its own manifest, whatever the training cache stores."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import validate
from schemas.manifest import TokenizerInfo
from schemas.train_config import TrainConfig
from support.models import write_random_teacher
from support.workspace import cache_tree
from teacher_cache import job
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage
from trainer.data.validation_data import check_comparable
from trainer.distiller import distill

TEXTS = [f"def f{i}(x): return x + {i}  # user assistant" for i in range(8)]
CAPTURES: dict[str, dict[str, Any]] = {
    "bfloat16": {"final": {"dtype": "bfloat16"}, "logits": {"k": 8, "temperatures": [2.0, 1.0]}},
    "int8": {"final": {"dtype": "int8"}, "logits": {"k": 16, "temperatures": [1.0, 3.0]}},
    "int4": {"final": {"dtype": "int4"}, "logits": {"k": 16, "temperatures": [1.0]}},
    "logits": {"logits": {"k": 24, "temperatures": [1.0, 5.0]}, "draws": None},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_teacher(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> dict[str, Path]:
    """The same texts by the same teacher, once a precision."""
    folder = tmp_path_factory.mktemp("caches")
    (folder / "corpus").mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"corpus/{i}.txt").write_text(text)
    for name, capture in CAPTURES.items():
        tree = cache_tree(teacher, folder / "corpus", folder / name, capture=capture)
        job.run(validate(CacheConfig, tree, where=name))
    return {name: folder / name for name in CAPTURES}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_teacher(tmp_path_factory.mktemp("models") / "student", seed=5, num_hidden_layers=1)


def exact_kl(teacher: Path, student: Path) -> float:
    """KL(teacher ‖ student) of whole distributions over all rows that count, float64, from the models themselves."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (teacher, student)]
    total, rows = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            log_p, log_q = (model(ids).logits[0, :-1].double().log_softmax(-1) for model in models)
        total += float((log_p.exp() * (log_p - log_q)).sum())
        rows += len(log_p)
    return total / rows


@pytest.mark.parametrize("training", CAPTURES)
@pytest.mark.parametrize(("validation", "tolerance"), [("bfloat16", 0.01), ("int8", 0.02), ("logits", 0.3)])
def test_validation_kl_is_that_of_the_validation_cache(
    caches: dict[str, Path],
    teacher: Path,
    student: Path,
    tmp_path: Path,
    training: str,
    validation: str,
    tolerance: float,
) -> None:
    config = TrainConfig.model_validate(
        {
            "data": {"cache": str(caches[training]), "validation_cache": str(caches[validation])},
            "student": {"checkpoint": str(student)},
            "optimizer": {"lr": 1e-12},
            "loop": {"max_steps": 1},
            "output": str(tmp_path / "out"),
        }
    )
    measured = distill(config)["validation"]["kl"]
    exact = exact_kl(teacher, student)
    assert measured == pytest.approx(exact, rel=tolerance)
    if validation == "logits":
        assert measured < exact, "tokens that are not stored count as one: a lower bound"


def test_caches_that_cannot_be_compared(caches: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_manifest(Storage(str(caches["int8"])))
    other = manifest.model_copy(update={"tokenizer": TokenizerInfo(fingerprint="d" * 64, vocab_size=384)})
    with pytest.raises(
        UserError, match=r"^data\.validation_cache: v: tokenizer dddddddddddd… differs from the training"
    ):
        check_comparable(manifest, other, "v")
    other = manifest.model_copy(update={"teacher": manifest.teacher.model_copy(update={"fingerprint": "e" * 64})})
    with caplog.at_level(logging.WARNING):
        check_comparable(manifest, manifest, "v")
        assert not caplog.records
        check_comparable(manifest, other, "v")
    assert "v: is of another teacher" in caplog.text


def test_the_vocabulary_alone_decides(caches: dict[str, Path]) -> None:
    """An older cache does not name the tokenizer's files."""
    manifest = read_manifest(Storage(str(caches["int8"])))
    plain = TokenizerInfo(fingerprint=manifest.tokenizer.fingerprint, vocab_size=manifest.tokenizer.vocab_size)
    assert plain != manifest.tokenizer
    check_comparable(manifest, manifest.model_copy(update={"tokenizer": plain}), "v")
