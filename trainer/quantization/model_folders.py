"""Model folders of a quantised model: compressed-tensors' ``pack-quantized``, and plain 16-bit weights.

``dense`` packs integers of ``bits`` bits densely; ``container`` stores the same integers in a wider type that more
kernels run; ``folded`` has the weights that they stand for, in bfloat16. All three are one model, to the last bit.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from schemas.errors import UserError
from trainer.quantization.dense_packing import pack
from trainer.quantization.grid import Grid
from trainer.student.student_tokenizer import copy_tokenizer

FORMATS = ("dense", "container", "folded")
OTHERS = {
    "gptq": "vLLM reads GPTQ with 4 and 8 bits only",
    "gguf": "GGUF's types of 3 bits hold another grid",
    "awq": "AutoAWQ's files have 4 bits and zero points",
}
MIN_READER = "0.18"  # of compressed-tensors: the first with dense packing
GENERATION = "generation_config.json"


def check_format(name: str) -> None:
    """Raise UserError for a format that is not written, with the reason."""
    if name not in FORMATS:
        reason = OTHERS.get(name.lower(), "no such format")
        raise UserError(
            f"--format {name}: {reason}; use dense (compressed-tensors, any bits), container (4 bits) or folded"
        )


def container_bits(bits: int) -> int:
    """Bits of the container of integers of ``bits`` bits: kernels exist for 4 and 8."""
    return 4 if bits <= 4 else 8


def write_packed(folded: Path, folder: Path, scales: Mapping[str, torch.Tensor], grid: Grid, bits: int) -> int:
    """Write the model in the folder ``folded`` with its targets packed as integers of ``bits`` bits.

    Returns the bytes of the targets: integers, scales and shapes. scales: of the targets, by their names in files. A
    weight's integers are found again by dividing it by its scale: rounding the product to bfloat16 moved it by less
    than half a step of the grid.
    """
    folder.mkdir(parents=True)
    ignored: list[str] = []
    names: dict[str, str] = {}
    size = packed_size = 0
    for file in sorted(folded.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no dict
        packed: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            module = name.removesuffix(".weight")
            if name in scales:
                integers_OI = grid.quantise(tensor.float(), scales[name])
                parts = {
                    f"{module}.weight_packed": pack(integers_OI, bits),
                    f"{module}.weight_scale": scales[name],
                    f"{module}.weight_shape": torch.tensor(integers_OI.shape),
                }
                packed |= parts
                packed_size += sum(part.nbytes for part in parts.values())
            else:
                packed[name] = tensor
                ignored += [module] * (tensor.ndim == 2 and module != name)
        save_file(packed, folder / file.name, metadata={"format": "pt"})
        names |= dict.fromkeys(packed, file.name)
        size += sum(tensor.nbytes for tensor in packed.values())
    if len(set(names.values())) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = json.loads((folded / "config.json").read_bytes())
    ignored += [] if "lm_head.weight" in names else ["lm_head"]  # tied to the embedding
    config["quantization_config"] = quantization_config(grid, bits, sorted(ignored))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (folded / GENERATION).is_file():
        shutil.copyfile(folded / GENERATION, folder / GENERATION)
    return packed_size


def quantization_config(grid: Grid, bits: int, ignored: Sequence[str]) -> dict[str, Any]:
    """``quantization_config`` of config.json, as compressed-tensors and vLLM read it.

    bits: of the stored integers. ignored: names of linear layers that are stored as they are.
    """
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": grid.group_size,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}},
        "ignore": list(ignored),
    }


def finish_folder(source: Path, folder: Path, card: str, trust_remote_code: bool) -> None:
    """Add the tokenizer's files and the model card."""
    copy_tokenizer(source, folder, trust_remote_code)
    (folder / "README.md").write_text(card, encoding="utf-8")
