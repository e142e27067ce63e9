"""Plugin for axolotl: its trainer with the data and the losses of a cache. Written for the interface of axolotl 0.19.

In its configuration: ``plugins: [trainer.api.axolotl_plugin.DistillationPlugin]`` and ``distillation:`` with the
arguments of a CacheDataset, of which rows_per_step, steps, epochs and seed follow from axolotl's own settings.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from schemas.errors import UserError
from trainer.api.cache_dataset import CacheDataset
from trainer.api.distillation_loss import DistillationLoss
from trainer.api.distillation_trainer import DistillationTrainer

if TYPE_CHECKING:
    Base = object
else:
    try:
        from axolotl.integrations.base import BasePlugin as Base
    except ImportError:  # documented methods can still be called, by tests
        Base = object

NUMBERS = ("micro_batch_size", "gradient_accumulation_steps")


class DistillationArgs(BaseModel):
    """Fields that axolotl adds to its configuration."""

    distillation: dict[str, Any] | None = None


class DistillationPlugin(Base):
    """Gives axolotl data set, loss and trainer; does nothing where ``distillation`` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.dataset: CacheDataset | None = None
        self.loss: DistillationLoss | None = None

    def get_input_args(self) -> str:
        """Return the name of the model of the added fields."""
        return f"{__name__}.{DistillationArgs.__name__}"

    def load_datasets(self, cfg: Mapping[str, Any], preprocess: bool = False) -> Any:
        """Open the caches; returns axolotl's description of a data set. Raises UserError."""
        settings = cfg.get("distillation")
        if not settings:
            return None
        from axolotl.common.datasets import TrainDatasetMeta

        self.dataset = dataset_of(settings, cfg)
        steps = self.dataset.steps
        return TrainDatasetMeta(train_dataset=self.dataset.row_numbers(), eval_dataset=None, total_num_steps=steps)

    def post_model_load(self, cfg: Mapping[str, Any], model: Any) -> None:
        """Prepare the losses for the model, adapters included. Raises UserError."""
        if self.dataset is not None:
            self.loss = DistillationLoss(self.dataset, model)

    def get_trainer_cls(self, cfg: Mapping[str, Any]) -> type[DistillationTrainer] | None:
        """Return axolotl's trainer with our data and loss."""
        if self.dataset is None:
            return None
        from axolotl.core.trainers import AxolotlTrainer

        plugin = self

        class AxolotlDistillationTrainer(DistillationTrainer, AxolotlTrainer):
            """AxolotlTrainer on a cache."""

            def __init__(self, model: Any, args: Any, **others: Any) -> None:
                assert plugin.loss is not None
                super().__init__(model, args, loss=plugin.loss, **others)

        return AxolotlDistillationTrainer

    def post_train(self, cfg: Mapping[str, Any], model: Any) -> None:
        """Remove recorders and learned maps from the model."""
        if self.loss is not None:
            self.loss.detach()


def dataset_of(settings: Mapping[str, Any], cfg: Mapping[str, Any]) -> CacheDataset:
    """The data set of ``distillation`` in a configuration of axolotl. Raises UserError."""
    given = {name: value for name, value in settings.items() if value is not None}
    if "cache" not in given:
        raise UserError("distillation.cache: not set; give the folder or URL of a cache")
    size, accumulated = (int(cfg.get(name) or 1) for name in NUMBERS)
    return CacheDataset(
        given.pop("cache"),
        given.pop("losses", None),
        rows_per_step=size * accumulated * int(os.environ.get("WORLD_SIZE", "1")),
        steps=cfg.get("max_steps") or None,
        epochs=float(cfg.get("num_epochs") or 1),
        seed=int(cfg.get("seed") or 0),
        **given,
    )
