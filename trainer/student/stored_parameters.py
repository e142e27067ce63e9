"""Count a model's parameters from the headers of its files."""

import math
from pathlib import Path


def stored_parameters(folder: Path) -> int:
    """Elements of all tensors in a folder's safetensors files; packed weights count as stored."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                total += math.prod(file.get_slice(name).get_shape())
    return total
