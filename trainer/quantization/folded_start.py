"""The start of training under quantisation: initial weights with activation-aware scales folded in, and the grid."""

import logging
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from schemas.train_config import QuantizationConfig, TrainConfig
from trainer.data.calibration import calibration_sequences
from trainer.data.open_caches import check_vocabulary
from trainer.data.shares import selection_of
from trainer.quantization.fake_activations import clips_of
from trainer.quantization.grid import Grid
from trainer.quantization.prepass import MAX_TOKENS, fold_scales
from trainer.quantization.scales_file import ScalesRecord
from trainer.quantization.sites import KEYS, TARGETS, Site, find_sites
from trainer.retargeting import open_tokens
from trainer.student.student_tokenizer import check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def grid_of(settings: QuantizationConfig) -> Grid:
    """The configured grid."""
    return Grid(settings.bits, settings.group_size)


def sites_of(student: "PreTrainedModel", settings: QuantizationConfig) -> list[Site]:
    """The student's sites. Raises UserError if it cannot be quantised as configured."""
    targets = TARGETS if settings.targets is None else tuple(settings.targets)
    return find_sites(student, grid_of(settings), targets, KEYS)


def folded_start(
    student: "PreTrainedModel", folder: Path, config: TrainConfig
) -> tuple[dict[str, torch.Tensor], ScalesRecord]:
    """Fold the activation-aware scales of ``config.quantization`` into ``student`` (float32), in place.

    folder: of its tokenizer. Returns the grid's scales and their record, as ``fold_scales`` does. Raises UserError.
    """
    settings, share = config.quantization, config.data.shares[0]
    assert settings is not None
    sites = sites_of(student, settings)
    with closing(open_tokens(config)) as cache:
        if config.data.align is None:
            check_tokenizer(cache.manifest, folder, share.url, trust_remote_code=config.student.trust_remote_code)
            check_vocabulary(cache.manifest, student.config, where=share.url)
        sequences = calibration_sequences(
            cache,
            selection_of(share, config.data),
            settings.calibration_samples,
            student.config,
            MAX_TOKENS,
            config.data.on_corrupt == "skip",
        )
    logger.info("choosing scales on %d samples, %d tokens", len(sequences), sum(map(len, sequences)))
    student.eval()
    student.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    scales, record = fold_scales(student, sites, grid_of(settings), sequences)
    if settings.activations is not None and settings.activations.clip is not None:
        clips = clips_of(student, sites, sequences, settings.activations.clip)
        record = record.model_copy(update={"clips": clips})
    student.to("cpu")  # type: ignore[arg-type]
    logger.info(
        "%d linear layers with %d-bit weights: relative error of their outputs %.3g, without scales %.3g",
        record.layers, record.bits, record.output_error, record.output_error_without_scales,
    )  # fmt: skip
    return scales, record
