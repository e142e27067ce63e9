"""Which dtypes the output head's matrix products are computed in."""

import atexit
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")


class HeadProducts(TorchDispatchMode):
    """Collects (shape of the left factor, dtype) of every matrix product that has the vocabulary as a dimension."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.seen: set[tuple[str, str]] = set()

    @property
    def dtypes(self) -> dict[str, list[str]]:
        """By product: ``logits`` (h Wᵀ), ``hidden`` (g W), ``weight`` (gᵀ h)."""
        found: dict[str, set[str]] = {}
        for kind, dtype in self.seen:
            found.setdefault(kind, set()).add(dtype)
        return {kind: sorted(found[kind]) for kind in sorted(found)}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name in PRODUCTS:
            left, right = [arg for arg in args if isinstance(arg, torch.Tensor)][-2:]
            places = (left.shape[0], left.shape[1], right.shape[1])
            if self.vocabulary in places:
                kind = ("weight", "hidden", "logits")[places.index(self.vocabulary)]
                self.seen.add((kind, str(left.dtype).removeprefix("torch.")))
        return function(*args, **(kwargs or {}))


class WriteHeadProducts:
    """To be called in a process that is forked: collects its products and writes them to ``path`` when it ends."""

    def __init__(self, path: Path, vocabulary: int) -> None:
        self.path, self.vocabulary = path, vocabulary

    def __call__(self) -> None:
        mode = HeadProducts(self.vocabulary)
        mode.__enter__()
        atexit.register(lambda: self.path.write_text(json.dumps(mode.dtypes)))
