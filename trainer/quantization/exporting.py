"""``train-student export``: from a model folder and a cache of its tokens to folders with weights of few bits.

A model trained under quantisation brings its scales along; it is packed as it is, without calibration.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from schemas.errors import UserError
from teacher_cache.model_folder import local_folder
from trainer.data.calibration import calibration_sequences
from trainer.data.open_caches import check_vocabulary, open_cache
from trainer.data.selection import Selection
from trainer.quantization.export_card import export_card
from trainer.quantization.grid import Grid
from trainer.quantization.model_folders import check_format, container_bits, finish_folder, write_packed
from trainer.quantization.prepass import MAX_TOKENS, fold_scales, round_in_place
from trainer.quantization.scales_file import ScalesRecord, read_scales, write_scales
from trainer.quantization.sites import TARGETS, find_sites
from trainer.quantization.smoke import check_folders, check_readers
from trainer.run.output_files import settle_folder, sync_folder
from trainer.student.build import load_model
from trainer.student.student_tokenizer import EVALUATED, other_fingerprint

logger = logging.getLogger(__name__)
FOLDED = "folded"  # the packed folders are made from it, and compared with it
DEFAULT = Grid(3, 128)


@dataclass(frozen=True)
class ExportSettings:
    """What the options of the command say."""

    grid: Grid | None = None  # that of the folder's own scales, else DEFAULT
    formats: tuple[str, ...] = ("dense",)
    targets: tuple[str, ...] = TARGETS
    samples: int = 512
    max_tokens: int = MAX_TOKENS
    check: bool = True
    trust_remote_code: bool = False


def export_folder(
    model_folder: str,
    output: Path,
    cache_url: str | None,
    settings: ExportSettings,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Quantise the model in ``model_folder`` and write it to ``output``; returns a summary.

    cache_url: for the calibration; not read if the folder has scales. One format is ``output`` itself; of several, each
    is a folder in it. ``output`` appears when all is written and checked. Raises UserError.
    """
    for name in settings.formats:
        check_format(name)
    if output.exists():
        raise UserError(f"{output}: exists; remove it, or name another OUTPUT")
    packed = [name for name in settings.formats if name != FOLDED]
    if settings.check and packed:
        check_readers()
    source = local_folder(model_folder, "MODEL")
    kept = read_scales(source)
    unfinished = output.with_name(output.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        folded = unfinished / FOLDED
        if kept is None:
            scales, record = _fold(source, folded, cache_url, settings, advance)
        else:
            scales, record = _copy(source, folded, *kept, settings)
        summary = _write_packed(folded, unfinished, packed, scales, record, settings)
        for name in settings.formats:
            finish_folder(
                source, unfinished / name, export_card(source.name, name, summary), settings.trust_remote_code
            )
        if FOLDED not in settings.formats:
            shutil.rmtree(unfinished / FOLDED, ignore_errors=True)
        settle_folder(unfinished)
        os.replace(unfinished / settings.formats[0] if len(settings.formats) == 1 else unfinished, output)
        sync_folder(output.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {"output": str(output), **summary}


def _fold(
    source: Path,
    folded: Path,
    cache_url: str | None,
    settings: ExportSettings,
    advance: Callable[[int, int], None],
) -> tuple[dict[str, torch.Tensor], ScalesRecord]:
    """Calibrate, round, and write the model in bfloat16 to the folder ``folded``, with its scales."""
    if cache_url is None:
        raise UserError("--cache: missing; scales are chosen on the tokens of a cache of the model's own tokenizer")
    trust, grid = settings.trust_remote_code, settings.grid or DEFAULT
    model = load_model(source, "MODEL", torch.float32, trust_remote_code=trust)
    model.eval()
    sites = find_sites(model, grid, settings.targets)
    with closing(open_cache(cache_url, ("tokens",))) as cache:
        check_vocabulary(cache.manifest, model.config, cache_url)
        other = other_fingerprint(cache.manifest, source, EVALUATED, trust)
        if other is not None:
            raise UserError(
                f"--cache {cache_url}: made with the tokenizer {cache.manifest.tokenizer.fingerprint[:12]}…, but "
                f"{source} has {other[:12]}…; calibrate with a cache of the model's own tokenizer"
            )
        sequences = calibration_sequences(cache, Selection(), settings.samples, model.config, settings.max_tokens)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    scales, record = fold_scales(model, sites, grid, sequences, advance)
    round_in_place(model, sites, scales, grid)
    model.to("cpu").to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folded)
    write_scales(folded, scales, record)
    return scales, record


def _copy(
    source: Path, folded: Path, scales: dict[str, torch.Tensor], record: ScalesRecord, settings: ExportSettings
) -> tuple[dict[str, torch.Tensor], ScalesRecord]:
    """Write a model whose weights lie on a grid to the folder ``folded``, in bfloat16, which holds the grid's values.

    Raises UserError if it is another grid than the options ask for.
    """
    if settings.grid not in (None, record.grid):
        raise UserError(
            f"{source}: its weights were made for {record.bits} bits in groups of {record.group_size}; leave out "
            "--bits and --group-size, or export the model that it was made from"
        )
    model = load_model(source, "MODEL", torch.bfloat16, trust_remote_code=settings.trust_remote_code)
    model.save_pretrained(folded)
    write_scales(folded, scales, record)
    return scales, record


def _write_packed(
    folded: Path,
    folder: Path,
    packed: list[str],
    scales: Mapping[str, torch.Tensor],
    record: ScalesRecord,
    settings: ExportSettings,
) -> dict[str, Any]:
    """Write the packed formats of the model in ``folded`` to ``folder``, and check them; returns a summary."""
    grid, trust = record.grid, settings.trust_remote_code
    sizes = {FOLDED: 16.0}
    for name in packed:
        bits = grid.bits if name == "dense" else container_bits(grid.bits)
        sizes[name] = 8 * write_packed(folded, folder / name, scales, grid, bits) / record.weights
    differences: dict[str, dict[str, float]] = {}
    if settings.check and packed:
        folders = {name: folder / name for name in packed}
        differences = check_folders(folded, folders, record.prompt, record.has_experts, trust)
    return {
        "bits": grid.bits,
        "group_size": grid.group_size,
        "layers": record.layers,
        "weights": record.weights,
        "bits_per_weight": {name: sizes[name] for name in settings.formats},
        "output_error": record.output_error,
        "output_error_without_scales": record.output_error_without_scales,
        "calibration": {"samples": record.samples, "tokens": record.tokens},
        "trained": record.trained,
        "largest_difference": differences,
    }
