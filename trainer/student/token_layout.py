"""Where a batch's tokens lie in the student's forward pass, computed once a batch, on the CPU.

Indexing with a mask, a maximum that is needed as a number: each makes the host wait for the device. So what depends on
the batch alone is made before it goes there.

Shape letters: R rows, L tokens, T positions that the student sees, N positions in the loss mask, S samples.
"""

from typing import Any, NamedTuple

import torch


class TokenLayout(NamedTuple):
    """Of one batch. ``longest`` stays a number, all else moves to the device."""

    loss_N: torch.Tensor  # int64: places in the T positions where the loss mask is True
    kept_T: torch.Tensor | None = (
        None  # int64: places in R · L that the student sees, as one row; None: all, as they are
    )
    bounds: torch.Tensor | None = None  # int32 [S + 1]: first position of each sample, and T; None: of no use
    longest: int = 0  # tokens of the longest sample

    def to(self, device: torch.device, non_blocking: bool = False) -> "TokenLayout":
        """The same on another device."""
        loss_N, kept_T, bounds = (
            part if part is None else part.to(device, non_blocking=non_blocking)
            for part in (self.loss_N, self.kept_T, self.bounds)
        )
        assert loss_N is not None
        return TokenLayout(loss_N, kept_T, bounds, self.longest)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the student's forward pass, with the samples' lengths as kernels take them."""
        inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
        if self.kept_T is not None:
            inputs = {name: value.flatten()[self.kept_T][None] for name, value in inputs.items()}
        if self.bounds is not None:
            inputs |= {"cu_seq_lens_q": self.bounds, "cu_seq_lens_k": self.bounds}
            inputs |= {"max_length_q": self.longest, "max_length_k": self.longest}
        return inputs


def token_layout(batch: dict[str, Any], flatten: bool) -> TokenLayout:
    """The layout of a batch, tensors of a RowBatch, with ``position_ids`` only if rows are packed.

    flatten: for kernels that take the lengths of samples: packed rows become one row, without padding.
    """
    mask_RL = batch["loss_mask"]
    if not flatten:
        return TokenLayout(mask_RL.flatten().nonzero().squeeze(1))
    rows, length = mask_RL.shape
    if "position_ids" not in batch:  # each row one sample, its padding behind it
        bounds = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=mask_RL.device)
        return TokenLayout(mask_RL.flatten().nonzero().squeeze(1), None, bounds, length)
    kept_T = batch["attention_mask"].flatten().nonzero().squeeze(1)
    first_S = (batch["position_ids"].flatten()[kept_T] == 0).nonzero().squeeze(1)
    bounds = torch.nn.functional.pad(first_S, (0, 1), value=len(kept_T)).int()
    loss_N = mask_RL.flatten()[kept_T].nonzero().squeeze(1)
    return TokenLayout(loss_N, kept_T, bounds, int(bounds.diff().max()))
