"""Which rows are in which micro-batch: a step's rows in turn, dealt to the ranks. Its state is one number."""

from collections.abc import Iterator
from typing import Any

import torch.distributed
from torch.utils.data import Sampler

from schemas.errors import UserError


class StepBatches(Sampler[list[int]]):
    """Batch sampler of one rank: the row numbers of each of its micro-batches, from a row on.

    The global micro-batches are runs of ``batch_size`` rows; rank r of w takes every w-th, from its r-th on.
    """

    def __init__(self, start: int, stop: int, batch_size: int, rank: int, world: int) -> None:
        """start, stop: rows, at the borders of steps."""
        self.start, self.stop = start, stop
        self.batch_size = batch_size
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return (self.stop - self.start) // (self.batch_size * self.world)

    def __iter__(self) -> "StepBatchesIterator":
        return StepBatchesIterator(self)

    def rows(self, batch: int) -> list[int]:
        """Rows of this rank's micro-batch of this number, counted from row 0."""
        first = (batch * self.world + self.rank) * self.batch_size
        return list(range(first, first + self.batch_size))


class StepBatchesIterator(Iterator[list[int]]):
    """Iterates over every ``stride``-th of StepBatches; its ``state_dict`` is what ``StatefulDataLoader`` keeps."""

    def __init__(self, batches: StepBatches, first: int = 0, stride: int = 1) -> None:
        self.batches = batches
        self.stride = stride
        self.next = batches.start // (batches.batch_size * batches.world) + first
        self.end = batches.stop // (batches.batch_size * batches.world)

    def __next__(self) -> list[int]:
        if self.next >= self.end:
            raise StopIteration
        rows = self.batches.rows(self.next)
        self.next += self.stride
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Number of the next micro-batch, and what it means."""
        batches = self.batches
        return {"next": self.next, "batch_size": batches.batch_size, "rank": batches.rank, "ranks": batches.world}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue. Raises UserError for a state of other batches."""
        wanted = self.state_dict() | {"next": state.get("next")}
        if state != wanted:
            raise UserError(
                f"the state of a loader is {state}, wanted {wanted}; with other batches or ranks continue by rows: "
                "dataset.load_state_dict(…), and a new loader"
            )
        self.next = state["next"]


def rank_and_world() -> tuple[int, int]:
    """Of ``torch.distributed``; (0, 1) where it is not in use."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def sum_over_ranks(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sum over the ranks of ``torch.distributed``, by way of ``device``; the result is where ``values`` are."""
    if rank_and_world()[1] == 1:
        return values
    total = values.to(device, copy=True)
    torch.distributed.all_reduce(total)
    return total.to(values.device)
