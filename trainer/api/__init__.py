"""The trainer as a library: a cache as a data set, its losses, and a ``transformers.Trainer``, for any training loop.

>>> from trainer.api import CacheDataset, DistillationLoss
>>> dataset = CacheDataset(url, {"tla": {}}, rows_per_step=4, steps=10)     # rows_per_step: of all ranks together
>>> loss = DistillationLoss(dataset, student)                               # before the optimiser is made
>>> for batch in dataset.loader(batch_size=2):
...     loss(student, batch).total.backward()                               # two micro-batches a step

Importing this module loads neither torch nor transformers; each name is imported when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.api.cache_dataset import CacheDataset as CacheDataset
    from trainer.api.cache_stream import CacheStream as CacheStream
    from trainer.api.distillation_loss import DistillationLoss as DistillationLoss
    from trainer.api.distillation_loss import StepTerms as StepTerms
    from trainer.api.distillation_module import DistillationModule as DistillationModule
    from trainer.api.distillation_trainer import DistillationTrainer as DistillationTrainer

_HOMES = {
    "CacheDataset": "cache_dataset",
    "CacheStream": "cache_stream",
    "DistillationLoss": "distillation_loss",
    "StepTerms": "distillation_loss",
    "DistillationTrainer": "distillation_trainer",
    "DistillationModule": "distillation_module",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name. Raises AttributeError."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
