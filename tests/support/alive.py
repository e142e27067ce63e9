"""What is alive of a sharded student when its final model is loaded."""

import gc
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch


class WriteAlive:
    """To be called in a process that is forked: counts models, optimisers and shards while the final model is loaded.

    ``by``: the function that loads it, as module and name.
    """

    def __init__(self, path: Path, module: str = "trainer.run.final_model", name: str = "load_weights") -> None:
        self.path, self.module, self.name = path, module, name

    def __call__(self) -> None:
        from importlib import import_module

        module = import_module(self.module)
        load = getattr(module, self.name)

        def counted(*args: Any) -> Any:
            self.path.write_text(json.dumps(self.count()))
            return load(*args)

        setattr(module, self.name, counted)

    def count(self) -> dict[str, int]:
        from torch.distributed.tensor import DTensor
        from transformers import PreTrainedModel

        found: Counter[str] = Counter()
        for thing in gc.get_objects():
            if isinstance(thing, DTensor):
                found["shards"] += 1
            elif isinstance(thing, torch.optim.Optimizer):
                found["optimisers"] += 1
            elif isinstance(thing, PreTrainedModel) and hasattr(thing, "lm_head"):
                found["students"] += 1
        return dict(found)
