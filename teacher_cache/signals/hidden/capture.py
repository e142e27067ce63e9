"""Quantisation of hidden states, and the tap on the residual stream. Runs on any torch device.

Values of 8 bits or fewer share a scale in small groups of channels. A few channels of a residual stream are orders of
magnitude larger than the rest and would leave only one or two steps for the others of their group; so the largest
channels of each row are stored separately as outliers, and are 0 in their groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from schemas.cache_config import HiddenCapture, Quantised
from teacher_cache.signals.hidden.codec import hidden_shapes
from teacher_cache.signals.hidden.record import HiddenBatch, HiddenSample
from teacher_cache.signals.tap import Tap


class HiddenRows(NamedTuple):
    """N quantised rows of one layer, on the device they were computed on. Dtypes: see HiddenSample."""

    values_ND: torch.Tensor
    scales_NG: torch.Tensor
    outlier_index_NO: torch.Tensor
    outliers_NO: torch.Tensor


CHUNK_VALUES = 1 << 24  # of which several float32 copies exist at a time, 64 MiB each
CPU_CHUNK_VALUES = 1 << 20  # within a CPU's last-level cache
_LARGEST = {"int8": 127, "int4": 7, "float8_e4m3": 448}  # largest value, in units of the group's scale


def quantise(hidden_ND: torch.Tensor, capture: Quantised) -> HiddenRows:
    """Quantise rows of one layer (any floating dtype), a bounded number of values at a time."""
    values = CPU_CHUNK_VALUES if hidden_ND.device.type == "cpu" else CHUNK_VALUES
    chunks = hidden_ND.split(max(1, values // hidden_ND.shape[1]))
    parts = [_quantise_chunk(chunk_ND, capture) for chunk_ND in chunks]
    return parts[0] if len(parts) == 1 else HiddenRows(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _quantise_chunk(hidden_ND: torch.Tensor, capture: Quantised) -> HiddenRows:
    n_rows, channels = hidden_ND.shape
    if not capture.has_scales:
        empty = hidden_ND.new_empty((n_rows, 0), dtype=torch.int16)
        return HiddenRows(hidden_ND.to(getattr(torch, capture.dtype)).view(torch.int16), empty, empty, empty)
    _, n_groups, n_outliers = hidden_shapes(capture, channels)
    hidden_ND = hidden_ND.float()
    index_NO = hidden_ND.abs().topk(n_outliers, dim=1).indices
    outliers_NO = hidden_ND.gather(1, index_NO)
    rest_ND = hidden_ND.scatter(1, index_NO, 0.0)
    padding = n_groups * capture.channels_per_scale - channels
    groups_NGB = torch.nn.functional.pad(rest_ND, (0, padding)).unflatten(1, (n_groups, -1))
    largest = _LARGEST[capture.dtype]
    scales_NG = (groups_NGB.abs().amax(dim=2) / largest).bfloat16()
    divisor_NG1 = scales_NG.float().clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]
    units_NGB = (groups_NGB / divisor_NG1).clamp(-largest, largest)
    return HiddenRows(
        _pack(units_NGB.flatten(1)[:, :channels], capture),
        scales_NG.view(torch.int16),
        index_NO.to(torch.int16),  # channels above 32767 wrap; dequantise unwraps them
        outliers_NO.bfloat16().view(torch.int16),
    )


def dequantise(
    values_XD: torch.Tensor,
    scales_XG: torch.Tensor,
    outlier_index_XO: torch.Tensor,
    outliers_XO: torch.Tensor,
    capture: Quantised,
) -> torch.Tensor:
    """Invert ``quantise`` up to rounding: float32 [..., D] from the arrays of a HiddenSample."""
    if not capture.has_scales:
        return values_XD.view(getattr(torch, capture.dtype)).float()
    units_XD = _unpack(values_XD, capture)
    channels = units_XD.shape[-1]
    scales_XD = scales_XG.view(torch.bfloat16).float().repeat_interleave(capture.channels_per_scale, dim=-1)
    hidden_XD = units_XD * scales_XD[..., :channels]
    index_XO = outlier_index_XO.long() & 0xFFFF
    return hidden_XD.scatter(-1, index_XO.clamp(max=channels - 1), outliers_XO.view(torch.bfloat16).float())


def _pack(units_ND: torch.Tensor, capture: Quantised) -> torch.Tensor:
    """Round float32 values, in units of their scales, to int8 [N, D], or [N, D / 2] for ``int4``."""
    if capture.dtype == "float8_e4m3":
        return units_ND.to(torch.float8_e4m3fn).view(torch.int8)
    steps_ND = units_ND.round().to(torch.int8)
    if capture.dtype == "int4":
        return steps_ND[:, ::2] & 0x0F | steps_ND[:, 1::2] << 4
    return steps_ND.contiguous()


def _unpack(values_XD: torch.Tensor, capture: Quantised) -> torch.Tensor:
    """Invert ``_pack``: float32 [..., D]."""
    if capture.dtype == "float8_e4m3":
        return values_XD.view(torch.float8_e4m3fn).float()
    if capture.dtype == "int4":
        return (
            torch.stack([values_XD << 4 >> 4, values_XD >> 4], dim=-1).flatten(-2).float()
        )  # both shifts keep the sign
    return values_XD.float()


def to_hidden_sample(positions: np.ndarray, layers: Sequence[HiddenRows]) -> HiddenSample:
    """Record of one sequence, in host memory, from the rows of its layers in ascending order."""
    columns = [torch.stack(column, dim=1).cpu().numpy() for column in zip(*layers, strict=True)]
    return HiddenSample(positions, *columns)


def to_floats(sample: HiddenSample | HiddenBatch, capture: Quantised) -> torch.Tensor:
    """Dequantise a record: float32 [P, C, D] of a sample, [N, C, D] of a batch."""
    arrays = (sample.values, sample.scales, sample.outlier_index, sample.outliers)
    values, scales, outlier_index, outliers = map(torch.from_numpy, arrays)
    return dequantise(values, scales, outlier_index, outliers, capture)


class HiddenTap(Tap):
    """Quantises the residual stream after the chosen layers."""

    def __init__(self, settings: HiddenCapture, num_layers: int) -> None:
        self._settings = settings
        self.layers = settings.layer_numbers(num_layers)

    def from_layer(self, stream_PD: torch.Tensor) -> HiddenRows:
        """Quantise rows of one layer."""
        return quantise(stream_PD, self._settings)

    def sample(self, positions: np.ndarray, pieces: Sequence[HiddenRows]) -> HiddenSample:
        """Record of all layers."""
        return to_hidden_sample(positions, pieces)
