"""Where a batch's tokens lie in the student's forward pass, computed once a batch, on the CPU.

Indexing with a mask, a maximum that is needed as a number: each makes the host wait for the device. So what depends on
the batch alone is made before it goes there. Bounds, lengths and ``seq_idx`` have the names that transformers gives
them: kernels of attention, of recurrent layers and of convolutions find them there.

Shape letters: R rows, L tokens, T positions that the student sees, N positions in the loss mask, S samples.
"""

from typing import Any, NamedTuple

import torch


class TokenLayout(NamedTuple):
    """Of one batch. ``longest`` stays a number, all else moves to the device."""

    loss_N: torch.Tensor
    """int64: which of the T positions are in the loss mask."""
    kept_T: torch.Tensor | None = None
    """int64: which of the R · L places the student sees, as one row; None: all, as rows."""
    bounds: torch.Tensor | None = None
    """int32 [S + 1]: the first position of each sample, and T; None: for kernels that do not take them."""
    longest: int = 0
    """Tokens of the longest sample."""
    sample_T: torch.Tensor | None = None
    """int32: the number of the sample at each position, for convolutions over packed rows."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "TokenLayout":
        """The same on another device."""
        loss_N, kept_T, bounds, sample_T = (
            part if part is None else part.to(device, non_blocking=non_blocking)
            for part in (self.loss_N, self.kept_T, self.bounds, self.sample_T)
        )
        assert loss_N is not None
        return TokenLayout(loss_N, kept_T, bounds, self.longest, sample_T)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the student's forward pass, with the samples' lengths as kernels take them."""
        inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
        if self.kept_T is not None:
            inputs = {name: value.flatten()[self.kept_T][None] for name, value in inputs.items()}
        if self.bounds is not None:
            inputs |= {"cu_seq_lens_q": self.bounds, "cu_seq_lens_k": self.bounds}
            inputs |= {"max_length_q": self.longest, "max_length_k": self.longest}
        if self.sample_T is not None:
            inputs["seq_idx"] = self.sample_T[None]
        return inputs


def token_layout(batch: dict[str, Any], flatten: bool) -> TokenLayout:
    """The layout of a batch, tensors of a RowBatch, with ``position_ids`` only if rows are packed.

    flatten: for kernels that take the lengths of samples: packed rows become one row, without padding.
    """
    mask_RL = batch["loss_mask"]
    if not flatten:
        return TokenLayout(mask_RL.flatten().nonzero().squeeze(1))
    rows, length = mask_RL.shape
    if "position_ids" not in batch or not batch["attention_mask"].any():  # rows, each with its padding, as samples
        bounds = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=mask_RL.device)
        return TokenLayout(mask_RL.flatten().nonzero().squeeze(1), None, bounds, length)
    kept_T = batch["attention_mask"].flatten().nonzero().squeeze(1)
    is_first_T = batch["position_ids"].flatten()[kept_T] == 0
    bounds = torch.nn.functional.pad(is_first_T.nonzero().squeeze(1), (0, 1), value=len(kept_T)).int()
    loss_N = mask_RL.flatten()[kept_T].nonzero().squeeze(1)
    sample_T = is_first_T.cumsum(0, dtype=torch.int32) - 1
    return TokenLayout(loss_N, kept_T, bounds, int(bounds.diff().max()), sample_T)
