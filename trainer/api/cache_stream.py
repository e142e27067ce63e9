"""The micro-batches of a CacheDataset as an iterable data set; worker processes take turns."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset, get_worker_info

from trainer.api.step_batches import StepBatches, StepBatchesIterator

if TYPE_CHECKING:
    from trainer.api.cache_dataset import CacheDataset


class CacheStream(IterableDataset[dict[str, Any]]):
    """One rank's micro-batches in order. With a DataLoader: ``batch_size=None``, any number of workers."""

    def __init__(self, dataset: "CacheDataset", batches: StepBatches) -> None:
        self.dataset = dataset
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> "CacheStreamIterator":
        return CacheStreamIterator(self)


class CacheStreamIterator(Iterator[dict[str, Any]]):
    """Reads one worker's share; its ``state_dict`` is what ``StatefulDataLoader`` keeps of each worker."""

    def __init__(self, stream: CacheStream) -> None:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self.dataset = stream.dataset
        self.numbers = StepBatchesIterator(stream.batches, first, stride)

    def __next__(self) -> dict[str, Any]:
        return self.dataset.__getitems__(next(self.numbers))

    def state_dict(self) -> dict[str, Any]:
        """Position; see ``StepBatchesIterator``."""
        return self.numbers.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue. Raises UserError for a state of other batches."""
        self.numbers.load_state_dict(state)
