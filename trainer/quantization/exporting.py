"""``train-student export``: from a model folder and a cache of its tokens to folders with weights of few bits."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from schemas.errors import UserError
from teacher_cache.model_folder import local_folder
from trainer.quantization.export_card import export_card
from trainer.quantization.grid import Grid
from trainer.quantization.input_moments import MAX_TOKENS, calibration_sequences
from trainer.quantization.model_folders import (
    check_format,
    container_bits,
    finish_folder,
    round_in_place,
    scales_of,
    write_packed,
)
from trainer.quantization.prepass import fold_scales
from trainer.quantization.sites import TARGETS, find_sites
from trainer.quantization.smoke import check_folders, check_readers
from trainer.run.output_files import settle_folder, sync_folder
from trainer.student.build import load_model

logger = logging.getLogger(__name__)
SCRATCH = "folded"  # always written: the packed folders are made from it, and compared with it


@dataclass(frozen=True)
class ExportSettings:
    """What the options of the command say."""

    grid: Grid
    formats: tuple[str, ...] = ("dense",)
    targets: tuple[str, ...] = TARGETS
    samples: int = 512
    max_tokens: int = MAX_TOKENS
    check: bool = True
    trust_remote_code: bool = False


def export_folder(
    model_folder: str,
    output: Path,
    cache_url: str,
    settings: ExportSettings,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Quantise the model in ``model_folder`` and write it to ``output``; returns a summary.

    One format is ``output`` itself; of several, each is a folder in it. ``output`` appears when all is written and
    checked. Raises UserError.
    """
    for name in settings.formats:
        check_format(name)
    if output.exists():
        raise UserError(f"{output}: exists; remove it, or name another OUTPUT")
    packed = [name for name in settings.formats if name != SCRATCH]
    if settings.check and packed:
        check_readers()
    source = local_folder(model_folder, "MODEL")
    trust = settings.trust_remote_code
    model = load_model(source, "MODEL", torch.float32, trust_remote_code=trust)
    model.eval()
    grid = settings.grid
    sites = find_sites(model, grid, settings.targets)
    sequences = calibration_sequences(cache_url, model.config, source, settings.samples, settings.max_tokens, trust)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    folded = fold_scales(model, sites, grid, sequences, advance)
    scales = scales_of(model, sites, grid)
    round_in_place(model, scales, grid)
    model.to("cpu")  # type: ignore[arg-type]
    unfinished = output.with_name(output.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        model.save_pretrained(unfinished / SCRATCH)
        weights = sum(matrix.of(model).numel() for matrix in scales)
        by_name = {matrix.stored: scales_OG for matrix, scales_OG in scales.items()}
        sizes = {SCRATCH: 8.0 * model.dtype.itemsize}
        for name in packed:
            bits = grid.bits if name == "dense" else container_bits(grid.bits)
            sizes[name] = 8 * write_packed(unfinished / SCRATCH, unfinished / name, by_name, grid, bits) / weights
        differences: dict[str, dict[str, float]] = {}
        if settings.check and packed:
            folders = {name: unfinished / name for name in packed}
            has_experts = any(site.expert is not None for site in sites)
            differences = check_folders(unfinished / SCRATCH, folders, sequences[0], has_experts, trust)
        summary = {
            "output": str(output),
            "bits": grid.bits,
            "group_size": grid.group_size,
            "layers": len(scales),
            "weights": weights,
            "bits_per_weight": {name: sizes[name] for name in settings.formats},
            "output_error": folded.error,
            "output_error_without_scales": folded.error_unscaled,
            "calibration": {"samples": len(sequences), "tokens": sum(map(len, sequences))},
            "largest_difference": differences,
        }
        for name in settings.formats:
            finish_folder(source, unfinished / name, export_card(source.name, name, summary), trust)
        if SCRATCH not in settings.formats:
            shutil.rmtree(unfinished / SCRATCH)
        settle_folder(unfinished)
        os.replace(unfinished / settings.formats[0] if len(settings.formats) == 1 else unfinished, output)
        sync_folder(output.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return summary
