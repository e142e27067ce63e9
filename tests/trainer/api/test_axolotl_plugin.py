"""The plugin by the contract of axolotl 0.19.0 (``axolotl/integrations/base.py``), which is not installed here.

Its commands call, in this order: ``register``, ``get_input_args``, ``load_datasets``, ``post_model_load``,
``get_trainer_cls``, ``post_trainer_create`` and ``post_train``; the trainer is made with the arguments below.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from schemas.errors import UserError
from schemas.train_config import LossConfig
from support.step_figures import assert_same_steps, step_figures
from trainer.api.axolotl_plugin import DistillationPlugin, dataset_of

CONTRACT = {
    "get_input_args": [],
    "load_datasets": ["cfg", "preprocess"],
    "post_model_load": ["cfg", "model"],
    "get_trainer_cls": ["cfg"],
    "post_train": ["cfg", "model"],
}


@dataclass
class TrainDatasetMeta:
    """``axolotl.common.datasets.TrainDatasetMeta``."""

    train_dataset: Any
    eval_dataset: Any = None
    total_num_steps: int | None = None


class AxolotlTrainer(Trainer):
    """The signature of ``axolotl.core.trainers.AxolotlTrainer``."""

    def __init__(
        self,
        *_args: Any,
        bench_data_collator: Any = None,
        eval_data_collator: Any = None,
        dataset_tags: Any = None,
        **kwargs: Any,
    ) -> None:
        self.dataset_tags = dataset_tags
        super().__init__(*_args, **kwargs)


@pytest.fixture
def axolotl(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"common.datasets": TrainDatasetMeta, "core.trainers": AxolotlTrainer}
    for name in ("axolotl", "axolotl.common", "axolotl.core"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, found in modules.items():
        module = ModuleType(f"axolotl.{name}")
        setattr(module, found.__name__, found)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def configuration(place: Path, **changes: Any) -> dict[str, Any]:
    settings = {"cache": str(place / "runs/demo/cache"), "losses": {"tla": {}, "lhsm": {}}, "packing": None}
    sizes = {"micro_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 20, "num_epochs": 1}
    return {"distillation": settings, **sizes, **changes}


def test_methods_are_those_of_the_contract() -> None:
    for name, wanted in CONTRACT.items():
        assert list(inspect.signature(getattr(DistillationPlugin(), name)).parameters) == wanted
    module, _, model = DistillationPlugin().get_input_args().rpartition(".")
    assert list(getattr(import_module(module), model).model_fields) == ["distillation"]


@pytest.mark.usefixtures("axolotl")
def test_it_trains_as_train_student_does(
    place: Path, tmp_path: Path, train_student: Callable[[LossConfig], dict[str, np.ndarray]]
) -> None:
    plugin, cfg = DistillationPlugin(), configuration(place)
    meta = plugin.load_datasets(cfg, preprocess=False)
    assert (len(meta.train_dataset), meta.eval_dataset, meta.total_num_steps) == (160, None, 20)
    model = AutoModelForCausalLM.from_pretrained(place / "models/student")
    plugin.post_model_load(cfg, model)
    kind = plugin.get_trainer_cls(cfg)
    assert kind is not None
    assert issubclass(kind, AxolotlTrainer)
    shape = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 3e-4}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=20, lr_scheduler_type="cosine", report_to="none", save_strategy="no", **shape
    )
    given = {"data_collator": lambda rows: rows, "processing_class": None, "dataset_tags": ["a"], "callbacks": []}
    trainer: Any = kind(
        model=model, train_dataset=meta.train_dataset, eval_dataset=meta.eval_dataset, args=arguments, **given
    )
    assert trainer.dataset_tags == ["a"]
    found = step_figures(trainer.train, micro_batches=4)
    assert_same_steps(found, train_student(LossConfig.model_validate(cfg["distillation"]["losses"])))
    plugin.post_train(cfg, model)
    assert "distillation_maps" not in dict(model.named_modules())


@pytest.mark.usefixtures("axolotl")
def test_without_its_settings_it_does_nothing(place: Path) -> None:
    plugin, cfg = DistillationPlugin(), configuration(place, distillation=None)
    assert plugin.load_datasets(cfg) is None
    plugin.post_model_load(cfg, None)
    assert plugin.get_trainer_cls(cfg) is None
    plugin.post_train(cfg, None)


def test_a_step_has_the_rows_of_all_ranks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    cfg = configuration(place, max_steps=None, num_epochs=2, seed=4)
    dataset = dataset_of(cfg["distillation"], cfg)
    assert (dataset.rows_per_step, dataset.seed) == (24, 4)
    assert dataset.steps == -(-2 * dataset.manifest.totals.samples // 24)
    with pytest.raises(UserError, match=r"distillation\.cache: not set"):
        dataset_of({"losses": {}}, cfg)
