"""Sums over the rows of each sample, beside the sums over all rows: what differences between students are paired by."""

from collections.abc import Sequence

import torch


class SampleSums:
    """Sums over the rows of each sample, in the order in which samples are measured."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names``: of the sums, S."""
        self.names = tuple(names)
        self.keys: list[str] = []  # of the samples; for whoever knows them to set
        self._batches: list[torch.Tensor] = []
        self._sample_N = torch.empty(0, dtype=torch.long)

    def begin(self, mask_RL: torch.Tensor) -> None:
        """Begin a batch of R samples, one in a row, whose rows of logits are those where ``mask_RL`` is True."""
        self._sample_N = mask_RL.nonzero()[:, 0].cpu()
        self._batches.append(torch.zeros(len(mask_RL), len(self.names), dtype=torch.float64))

    def add(self, each: dict[str, torch.Tensor], chunk: slice) -> None:
        """Add values [n] at a chunk of the batch's rows."""
        values_nS = torch.stack([each[name].double() for name in self.names], dim=1).cpu()  # GPUs add in any order
        self._batches[-1].index_add_(0, self._sample_N[chunk], values_nS)

    def sums(self) -> dict[str, torch.Tensor]:
        """The sums of all samples, float64 [samples] on the CPU, by name."""
        return dict(zip(self.names, torch.cat(self._batches).unbind(dim=1), strict=True))
