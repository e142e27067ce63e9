"""``quantization/scales.safetensors`` of a model folder whose weights were folded for a grid, or lie on it.

A folder of its own, since engines load every file of weights that lies beside ``config.json``.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.strict import Strict
from trainer.quantization.grid import Grid

FOLDER, FILE, RECORD = "quantization", "scales.safetensors", "record"


class ScalesRecord(Strict):
    """The grid, and what the calibration measured."""

    bits: int = Field(ge=2, le=8)
    group_size: int = Field(ge=32, le=128)
    layers: int  # linear layers on the grid
    weights: int  # of these
    has_experts: bool
    samples: int
    tokens: int
    output_error: float  # of these layers, relative to the outputs' energy, after rounding the folded weights
    output_error_without_scales: float
    prompt: list[int] = Field(min_length=1, max_length=1024)  # ids of the calibration, to generate from
    clips: dict[str, float] = Field(default_factory=dict)  # of the inputs of linear layers, by name
    trained: bool = False  # under quantisation

    @property
    def grid(self) -> Grid:
        """The grid."""
        return Grid(self.bits, self.group_size)


def write_scales(model_folder: Path, scales: Mapping[str, torch.Tensor], record: ScalesRecord) -> None:
    """Write the scales, bfloat16 [O, G] by the weights' names in the folder's files."""
    (model_folder / FOLDER).mkdir()
    metadata = {RECORD: record.model_dump_json()}
    save_file({name: one.contiguous() for name, one in scales.items()}, model_folder / FOLDER / FILE, metadata)


def read_scales(model_folder: Path) -> tuple[dict[str, torch.Tensor], ScalesRecord] | None:
    """The scales and their record; None for a folder without. Raises UserError for a damaged file."""
    path = model_folder / FOLDER / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata() or {}
            scales = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no dict
    except Exception as error:  # safetensors raises its own kinds
        raise UserError(f"{path}: cannot be read: {error}; take the folder from where it was made") from None
    record = parse_json(ScalesRecord, metadata.get(RECORD, "").encode(), where=str(path))
    for name, scales_OG in scales.items():
        if (
            scales_OG.ndim != 2
            or scales_OG.dtype != torch.bfloat16
            or not (scales_OG.isfinite() & (scales_OG != 0)).all()
        ):
            raise UserError(f"{path}: {name}: wanted finite scales in bfloat16, [outputs, groups], none of them 0")
    return scales, record
