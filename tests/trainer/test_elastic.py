"""Any number of ranks and workers reads the same global batches, and goes on where any other has stopped."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import Dataset

from support.amount import amount
from support.indexed import Indexed
from trainer.data import batches as data
from trainer.data.batches import training_loader
from trainer.data.order import CacheOrder, Shuffle
from trainer.data.row_plan import RowPlan, plan_rows
from trainer.data.selection import Selection, Subset
from trainer.data.worker_transfer import Batch

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
RANKS, WORKERS = (1, 2, 4, 8), (0, 1, 2, 4, 8)
MOST_WORKERS = amount(8, full=64)  # of all ranks
STOPS = amount(20, full=50)
GLOBAL_BATCH = 16
SAMPLES = 300
WIDEST = 64 // 3  # samples of a packed row
LENGTHS = np.random.default_rng(0).integers(3, 40, SAMPLES)


class Numbers(Dataset[Batch]):
    """In place of a cache's rows: which samples they are. Short rows are filled up with -1."""

    def __init__(self, plan: RowPlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitems__(self, rows: list[int]) -> Batch:
        found = [np.array(row) for row in self.plan.rows(rows)]
        padded = [np.pad(row, (0, WIDEST - len(row)), constant_values=-1) for row in found]
        return {"samples": torch.from_numpy(np.stack(padded))}


def plan(kind: str) -> RowPlan:
    """Of one cache or of two, mixed; samples a row each, or packed."""
    shards, pack_tokens = [40, 1, 159, 60, 40], 64 if "packed" in kind else None
    parts = [shards[:2], shards[2:]] if "mixed" in kind else [shards]
    orders, first = [], 0
    for sizes in parts:
        cache = Indexed(sizes, LENGTHS[first : first + sum(sizes)])
        subset = Subset(cache, Selection(validation_fraction=0.2 if "mixed" in kind else 0.0))
        orders.append(CacheOrder(subset, Shuffle(5, shards_mixed=2), pack_tokens))
        first += sum(sizes)
    weights = [1.0, 2.0] if "mixed" in kind else None
    return plan_rows(orders, weights, global_batch=GLOBAL_BATCH, epochs=2, max_steps=None)


def global_batches(plan: RowPlan, start: int, ranks: int, workers: int) -> Iterator[np.ndarray]:
    """The rows of each step from row ``start`` on, as that many ranks read them together: their turns in order."""
    micro_batch = min(2, GLOBAL_BATCH // ranks)
    loaders = [
        prepare_data_loader(
            training_loader(Numbers(plan), start, micro_batch, workers),  # type: ignore[arg-type]
            num_processes=ranks,
            process_index=rank,
            put_on_device=False,
        )
        for rank in range(ranks)
    ]
    turns = (batch["samples"].numpy() for together in zip(*loaders, strict=True) for batch in together)
    while step := list(itertools.islice(turns, GLOBAL_BATCH // micro_batch)):
        yield np.concatenate(step)


@pytest.fixture(autouse=True)
def fast_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked: there is no reader here whose threads could be missed, and hundreds of processes are to be started."""
    monkeypatch.setattr(data, "WORKERS_START_BY", "fork")


SHAPES = {
    "plain": [(ranks, workers) for ranks in RANKS for workers in WORKERS if ranks * workers <= MOST_WORKERS],
    "packed": [(1, 8), (4, 0), (8, 2)],
    "mixed": [(2, 4), (8, 0)],
    "mixed and packed": [(4, 1), (1, 2)],
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_reads_the_same_global_batches(kind: str) -> None:
    rows = plan(kind)
    wanted = list(global_batches(rows, 0, 1, 0))
    read = np.concatenate(wanted)
    assert len(wanted) * GLOBAL_BATCH == len(rows)
    assert read[read >= 0].tolist() == [sample for row in rows.rows(range(len(rows))) for sample in row]
    for ranks, workers in SHAPES[kind]:
        found = list(global_batches(rows, 0, ranks, workers))
        assert len(found) == len(wanted)
        assert all(np.array_equal(one, two) for one, two in zip(found, wanted, strict=True)), (ranks, workers)


def test_stops_and_changes_of_shape_lose_and_repeat_nothing() -> None:
    rng = np.random.default_rng(0)
    stops = 0
    while stops < STOPS:
        rows = plan(list(SHAPES)[stops % 4])
        wanted = list(global_batches(rows, 0, 1, 0))
        found: list[np.ndarray] = []
        while len(found) < len(wanted):
            ranks, workers = rng.choice(RANKS), rng.choice([0, 0, 1, 2])
            steps = int(rng.integers(1, 8))
            found += itertools.islice(global_batches(rows, len(found) * GLOBAL_BATCH, ranks, workers), steps)
            stops += 1
        assert all(np.array_equal(one, two) for one, two in zip(found, wanted, strict=True))
