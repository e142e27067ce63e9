"""A student that is trained under quantisation: its layers' hooks while it trains, its rounded weights afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from schemas.errors import UserError
from schemas.train_config import QuantizationConfig, StudentConfig
from trainer.quantization.fake_activations import round_activations
from trainer.quantization.fake_quantizer import SUFFIX, FakeQuantizer, as_used
from trainer.quantization.folded_start import grid_of, sites_of
from trainer.quantization.prepass import parameters_of, round_in_place
from trainer.quantization.scales_file import ScalesRecord, read_scales
from trainer.quantization.sites import Site
from trainer.student.build import load_model
from trainer.student.parallel import load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantise_layers(
    student: "PreTrainedModel", init_folder: Path, settings: QuantizationConfig, checkpoint: Path | None = None
) -> None:
    """Quantise the student's layers, for as long as it lives.

    init_folder: of the initial weights, with the scales. checkpoint: one with learned scales. Raises UserError.
    """
    scales, record = start_scales(init_folder)
    sites, learned = sites_of(student, settings), settings.scale == "learned"
    if learned and checkpoint is not None:
        scales = saved_scales(checkpoint, scales)
    FakeQuantizer(student, parameters_of(sites, scales), grid_of(settings), learned)
    if settings.activations is not None:
        round_activations(student, sites, settings.activations, record.clips)


def start_scales(init_folder: Path) -> tuple[dict[str, torch.Tensor], ScalesRecord]:
    """The scales that were chosen for the initial weights, by the weights' names in files. Raises UserError."""
    found = read_scales(init_folder)
    if found is None:
        raise UserError(f"{init_folder}: has no scales; remove the folder to make it again")
    return found


@dataclass(frozen=True)
class RoundedStudent:
    """A student whose quantised weights lie on the grid, in float32 on the CPU, with what ``write_scales`` takes."""

    student: "PreTrainedModel"
    scales: dict[str, torch.Tensor]
    record: ScalesRecord


def rounded_student(
    checkpoint: Path, init_folder: Path, student: StudentConfig, settings: QuantizationConfig, sharded: bool, bf16: bool
) -> RoundedStudent:
    """The student of a checkpoint with the weights that its layers ran with.

    sharded: whether the checkpoint is. bf16: whether training computed in bfloat16. Raises UserError.
    """
    scales, record = start_scales(init_folder)
    folder, learned = init_folder if sharded else checkpoint, settings.scale == "learned"
    model = load_model(folder, "student", torch.float32, trust_remote_code=student.trust_remote_code)
    sites, grid = sites_of(model, settings), grid_of(settings)
    if sharded:
        quantizer = FakeQuantizer(model, parameters_of(sites, scales), grid, learned)
        load_weights(model, checkpoint)
        scales = by_stored_names(sites, quantizer.remove(model))
    elif learned:
        scales = {name: as_used(one) for name, one in saved_scales(checkpoint, scales).items()}
    if bf16:
        for name in {reader.parameter for site in sites for reader in site.readers}:
            weight = model.get_parameter(name).data
            weight.copy_(weight.to(torch.bfloat16))
    round_in_place(model, sites, scales, grid)
    return RoundedStudent(model, scales, record.model_copy(update={"trained": True}))


def saved_scales(checkpoint: Path, start: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Learned scales of a checkpoint that is not sharded, float32 [O, G], by the weights' names in files.

    start: those of the initial weights. transformers splits the scales of fused experts as it splits their weights, and
    drops a dimension of 1. Raises UserError.
    """
    found: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            here = set(stored.keys())
            for name in (name for name in start if name + SUFFIX in here):
                found[name] = stored.get_tensor(name + SUFFIX).view_as(start[name])
    missing = [name for name in start if name not in found]
    if missing:
        raise UserError(f"{checkpoint}: has no learned scales of {missing[0]}; start over with loop.resume: false")
    return found


def by_stored_names(sites: Sequence[Site], by_parameter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scales by the weights' names in files, [O, G]; the inverse of ``parameters_of``."""
    found = {}
    for reader in (reader for site in sites for reader in site.readers):
        scales = by_parameter[reader.parameter]
        scales = scales if reader.expert is None else scales[reader.expert]
        found[reader.stored] = scales if reader.half is None else scales.chunk(2)[reader.half]
    return found
