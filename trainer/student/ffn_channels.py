"""Remove the least active channels of a model's FFNs, in place, so that all have one width."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from schemas.errors import UserError
from schemas.train_config import WIDTH_MULTIPLE, FfnConfig
from teacher_cache.device_memory import allocatable_bytes
from trainer.student.ffn_importance import ChannelSums, channel_sums
from trainer.student.ffns import Ffn, find_ffns

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
MIN_TOKENS = 256  # of an expert, below which its ranking is mostly chance
ROOM = 1.25  # memory on a GPU that a model is given, in sizes of its weights
NAMED = 8  # experts in a warning


def ffn_widths(ffns: Sequence[Ffn], settings: FfnConfig) -> dict[str, int]:
    """The new width for each key of the model's configuration. Raises UserError for a width that is not possible."""
    return {key: _new_width(key, width, settings) for key, width in _widths(ffns).items()}


def _widths(ffns: Sequence[Ffn]) -> dict[str, int]:
    return {ffn.width_key: ffn.width for ffn in ffns}


def _new_width(key: str, width: int, settings: FfnConfig) -> int:
    """The width of an FFN that has ``width`` channels: as set, or the nearest multiple to what is left."""
    if settings.width is not None:
        if settings.width >= width:
            raise UserError(
                f"student.ffn.width: {settings.width}: the model's FFNs have {width} channels ({key}); choose a "
                f"multiple of {WIDTH_MULTIPLE} below that"
            )
        return settings.width
    assert settings.remove is not None
    left = width * (1 - settings.remove)
    rounded = WIDTH_MULTIPLE * math.floor(left / WIDTH_MULTIPLE + 0.5)
    if not WIDTH_MULTIPLE <= rounded < width:
        largest = WIDTH_MULTIPLE * ((width - 1) // WIDTH_MULTIPLE)
        possible = f"{1 - largest / width:.3g} to {1 - WIDTH_MULTIPLE / width:.3g}" if largest else "none"
        raise UserError(
            f"student.ffn.remove: {settings.remove}: of {width} channels ({key}) {left:.0f} would be left, and the "
            f"nearest multiple of {WIDTH_MULTIPLE} is {rounded}; possible shares: {possible}"
        )
    if abs(rounded - left) >= 0.5:
        logger.info(
            "student.ffn: %s of %d channels (%s) would leave %.0f; %d are left, a multiple of %d: %.3g are removed",
            settings.remove, width, key, left, rounded, WIDTH_MULTIPLE, 1 - rounded / width,
        )  # fmt: skip
    return rounded


def prune_ffns(
    model: "PreTrainedModel", settings: FfnConfig, batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, tuple[int, int]]:
    """Remove the channels with the smallest Σ |activation| over ``batches``, and set the widths in ``model.config``.

    The model runs in its own dtype, on a GPU if it fits there; afterwards it is on the CPU, to be saved. batches: as
    for ``channel_sums``. Returns (width before, after) by key of the configuration. Raises UserError.
    """
    ffns = find_ffns(model)
    before, after = _widths(ffns), ffn_widths(ffns, settings)
    model.to(_device(model))  # type: ignore[arg-type]
    sums = channel_sums(model, ffns, batches)
    model.to("cpu")  # type: ignore[arg-type]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _warn_of_rare_experts(sums)
    for one in sums:
        remove_channels(one.ffn, most_active(one.abs_EF.cpu(), after[one.ffn.width_key]))
    model.config.get_text_config().update(after)
    return {key: (before[key], after[key]) for key in before}


def most_active(importance_EF: torch.Tensor, width: int) -> torch.Tensor:
    """The ``width`` channels of largest importance of each expert, int64 [E, width], ascending; of equals the first."""
    order_EF = importance_EF.argsort(dim=1, descending=True, stable=True)
    return order_EF[:, :width].sort(dim=1).values


@torch.no_grad()
def remove_channels(ffn: Ffn, kept_EW: torch.Tensor) -> None:
    """Keep only these channels of an FFN's weights. kept_EW: int64, of each expert."""
    module, width = ffn.module, ffn.width
    if ffn.is_fused:
        gate_up, down = (getattr(module, name) for name in (*ffn.writers, ffn.reader))
        rows = torch.cat([kept_EW, kept_EW + width], dim=1)[:, :, None].expand(-1, -1, gate_up.shape[2])
        columns = kept_EW[:, None, :].expand(-1, down.shape[1], -1)
        gate_up.data, down.data = gate_up.gather(1, rows), down.gather(2, columns)
        return
    kept_W, reader = kept_EW[0], getattr(module, ffn.reader)
    for writer in (getattr(module, name) for name in ffn.writers):
        writer.weight.data, writer.out_features = writer.weight[kept_W], len(kept_W)
        if writer.bias is not None:
            writer.bias.data = writer.bias[kept_W]
    reader.weight.data, reader.in_features = reader.weight[:, kept_W], len(kept_W)


def _device(model: "PreTrainedModel") -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    needed, free = ROOM * model.get_memory_footprint(), allocatable_bytes(device) or 0
    if needed <= free:
        return device
    logger.warning(
        "student.ffn: the model takes about %.3g GiB and the GPU has %.3g: channels are measured on the CPU",
        needed / 2**30, free / 2**30,
    )  # fmt: skip
    return torch.device("cpu")


def _warn_of_rare_experts(sums: Sequence[ChannelSums]) -> None:
    rare = [
        (one.ffn.layer, expert, int(tokens))
        for one in sums
        for expert, tokens in enumerate(one.tokens_E.tolist())
        if one.ffn.is_fused and tokens < MIN_TOKENS
    ]
    if rare:
        named = [f"layer {layer} expert {expert} ({tokens})" for layer, expert, tokens in rare[:NAMED]]
        logger.warning(
            "student.ffn: %d experts saw fewer than %d tokens, so their channels are chosen almost by chance: %s%s; "
            "raise student.ffn.samples",
            len(rare), MIN_TOKENS, ", ".join(named), ", …" * (len(rare) > NAMED),
        )  # fmt: skip
