"""Indices of a signal's stored rows into the student's recorded features."""

import torch

from trainer.losses.loss import Batch


def places(batch: Batch, signal: str, flat: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row and column of a signal's N stored rows in recorded features [R, L, …], and the columns' shift; int64 [N].

    flat: packed rows were flattened to one row without padding (``student/forward.py``), which shifts columns.
    """
    row_N, column_N = batch[f"{signal}_batch_row"], batch[f"{signal}_column"]
    if not (flat and "position_ids" in batch):
        return row_N, column_N, torch.zeros_like(column_N)
    flat_RL = batch["attention_mask"].flatten().cumsum(0).view(batch["attention_mask"].shape) - 1
    flat_N = flat_RL[row_N, column_N]
    return torch.zeros_like(row_N), flat_N, flat_N - column_N
