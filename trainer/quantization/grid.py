"""The grid of weights: symmetric integers with one signed scale for each group of neighbouring inputs.

A group's scale is s = -m / 2^(bits - 1), where m is its entry of the largest magnitude, with its sign. That entry then
lands exactly on the grid's lowest integer, -2^(bits - 1), and the other side of the grid serves the smaller entries:
with three bits a grid of eight values has none to waste, and no zero points are stored.

Shape letters: O outputs, I inputs, G = I / group_size groups; experts may precede them.
"""

from dataclasses import dataclass
from typing import get_args

import torch

from schemas.train_config import GroupSize, WeightBits

BITS: tuple[int, ...] = get_args(WeightBits)
GROUP_SIZES: tuple[int, ...] = get_args(GroupSize)


@dataclass(frozen=True)
class Grid:
    """Integers of ``bits`` bits, and ``group_size`` inputs to a scale."""

    bits: int
    group_size: int

    @property
    def lowest(self) -> int:
        """The lowest integer, -2^(bits - 1); the highest is ``-lowest - 1``."""
        return -(1 << (self.bits - 1))

    def scales(self, weight_OI: torch.Tensor) -> torch.Tensor:
        """Signed scales [O, G] in the weight's dtype; 1 for a group of zeros."""
        weight_OGN = self._grouped(weight_OI)
        at = weight_OGN.abs().argmax(dim=-1, keepdim=True)
        scales_OG = weight_OGN.gather(-1, at).squeeze(-1) / self.lowest
        return torch.where(scales_OG == 0, 1.0, scales_OG)

    def quantise(self, weight_OI: torch.Tensor, scales_OG: torch.Tensor) -> torch.Tensor:
        """The nearest integers of the grid, int8 [O, I]."""
        return self._rounded(weight_OI, scales_OG).flatten(-2).to(torch.int8)

    def dequantise(self, integers_OI: torch.Tensor, scales_OG: torch.Tensor) -> torch.Tensor:
        """Weights [O, I] in the scales' dtype: rounded once, as every reader of the files computes them."""
        return (self._grouped(integers_OI).to(scales_OG.dtype) * scales_OG[..., None]).flatten(-2)

    def fake_quantise(self, weight_OI: torch.Tensor, scales_OG: torch.Tensor) -> torch.Tensor:
        """The weights that the integers stand for, [O, I] in the scales' dtype."""
        rounded_OGN = self._rounded(weight_OI, scales_OG)
        return rounded_OGN.mul_(scales_OG.to(rounded_OGN.dtype)[..., None]).flatten(-2).to(scales_OG.dtype)

    def ratios(self, weight_OI: torch.Tensor, scales_OG: torch.Tensor) -> torch.Tensor:
        """Weights in units of their scales, [O, G, group_size] in at least float32.

        A product with the reciprocal, which every device rounds alike, as it does not a quotient.
        """
        dtype = torch.promote_types(weight_OI.dtype, torch.float32)
        return self._grouped(weight_OI) * scales_OG.to(dtype).reciprocal()[..., None]

    def _rounded(self, weight_OI: torch.Tensor, scales_OG: torch.Tensor) -> torch.Tensor:
        """The nearest integers of the grid as floats, [O, G, group_size]; in place, for speed."""
        return self.ratios(weight_OI, scales_OG).round_().clamp_(self.lowest, -self.lowest - 1)

    def _grouped(self, tensor_OI: torch.Tensor) -> torch.Tensor:
        return tensor_OI.unflatten(-1, (-1, self.group_size))
