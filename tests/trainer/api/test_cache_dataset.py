"""The data set: the run's rows in their order, exact positions, and counts of whole steps."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from schemas.errors import UserError
from support.commands import fork_server
from trainer.api import CacheDataset

STEPS, ROWS = 20, 8
LOSSES = {"tla": {}, "lhsm": {}}
STOPS = 20


@pytest.fixture(scope="module")
def url(place: Path) -> str:
    return str(place / "runs/demo/cache")


def opened(url: str, **changes: Any) -> CacheDataset:
    losses = {"tla": {"target": "top_k"}}
    return CacheDataset(url, **{"losses": losses, "rows_per_step": ROWS, "steps": STEPS, "seed": 5, **changes})


def stateful(dataset: CacheDataset, kind: str, workers: int, batch_size: int = 2, **ranks: int) -> StatefulDataLoader:
    options = {"num_workers": workers, "collate_fn": dataset.collate}
    if workers:
        options |= {"multiprocessing_context": fork_server(), "timeout": 60}
    if kind == "stream":
        return StatefulDataLoader(dataset.stream(batch_size, **ranks), batch_size=None, **options)
    return StatefulDataLoader(dataset, batch_sampler=dataset.batch_sampler(batch_size, **ranks), **options)


def samples(batches: Any) -> list[tuple[int, ...]]:
    """The tokens of every sample, in order."""
    found = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            found.append(tuple(ids[mask].tolist()))
    return found


@pytest.fixture(scope="module")
def whole(url: str) -> list[tuple[int, ...]]:
    """All samples of a run of one rank, without a stop."""
    dataset = opened(url)
    found = samples(dataset[row] for row in range(len(dataset)))
    assert len(found) == STEPS * ROWS
    return found


@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_is_stopped_anywhere_goes_on_exactly(
    url: str, whole: list[tuple[int, ...]], workers: int, kind: str
) -> None:
    stops = sorted(random.Random(workers).sample(range(1, len(whole) // 2), STOPS))
    found: list[tuple[int, ...]] = []
    state: dict[str, Any] = {}
    for before, stop in pairwise([0, *stops, len(whole) // 2]):
        loader = stateful(opened(url), kind, workers)
        loader.load_state_dict(state)
        reading = iter(loader)
        found += samples(islice(reading, stop - before))
        state = loader.state_dict()
    assert list(reading) == []
    assert found == whole


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_workers_change_between_two_steps(url: str, whole: list[tuple[int, ...]], kind: str) -> None:
    found: list[tuple[int, ...]] = []
    state = opened(url).state_dict()
    for workers, steps in ((0, 3), (2, 6), (1, STEPS - 9)):
        dataset = opened(url)
        dataset.load_state_dict(state)
        for batch in islice(stateful(dataset, kind, workers), steps * ROWS // 2):
            found += samples([batch])
            dataset.seek(batch["rows_consumed"])
        state = dataset.state_dict()
    assert found == whole


def of_ranks(dataset: CacheDataset, ranks: int, batch_size: int, kind: str) -> Iterator[list[tuple[int, ...]]]:
    """The samples of each step, from all ranks."""
    loaders = [iter(stateful(dataset, kind, 0, batch_size, rank=rank, ranks=ranks)) for rank in range(ranks)]
    for _ in range((len(dataset) - dataset.rows_consumed) // ROWS):
        yield [each for loader in loaders for each in samples(islice(loader, ROWS // batch_size // ranks))]


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_two_ranks_become_one_and_then_four(url: str, whole: list[tuple[int, ...]], kind: str) -> None:
    steps: list[list[tuple[int, ...]]] = []
    for ranks, batch_size, count in ((2, 2, 7), (1, 4, 6), (4, 1, STEPS - 13)):
        dataset = opened(url)
        dataset.load_state_dict({**dataset.state_dict(), "rows_consumed": len(steps) * ROWS})
        steps += islice(of_ranks(dataset, ranks, batch_size, kind), count)
    assert [Counter(step) for step in steps] == [
        Counter(whole[start : start + ROWS]) for start in range(0, len(whole), ROWS)
    ]


@pytest.mark.parametrize("shares", [1, 2])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, ROWS])
def test_batches_carry_the_rows_of_their_whole_step(url: str, batch_size: int, packing: bool, shares: int) -> None:
    options = {"packing": True, "pack_tokens": 96} if packing else {}
    caches = [{"url": url, "weight": number} for number in range(1, shares + 1)]
    dataset = CacheDataset(caches, LOSSES, rows_per_step=ROWS, steps=3, **options)
    batches = list(dataset.loader(batch_size, rank=0, ranks=1))
    for step in range(3):
        own = [batch for batch in batches if batch["step"] == step]
        assert len(own) == ROWS // batch_size
        sums = {name: sum(int(batch[name].sum()) for batch in own) for name in ("loss_mask", "attention_mask")}
        sums["hidden"] = sum(len(batch["hidden_column"]) for batch in own)
        assert min(sums.values()) > 0
        for batch in own:
            assert batch["step_rows"] == sums
            assert batch["rows_consumed"] == (step + 1) * ROWS
            assert ("position_ids" in batch) == packing


def test_other_processes_decode(url: str) -> None:
    dataset = opened(url, losses=LOSSES, steps=2)
    wanted = list(dataset.loader(2))
    found = list(dataset.loader(2, num_workers=1, multiprocessing_context=fork_server()))  # faster than spawn
    for batch, other in zip(found, wanted, strict=True):
        assert batch.keys() == other.keys()
        for name, value in other.items():
            assert type(batch[name]) is type(value)
            np.testing.assert_equal(
                *(np.asarray(each) if name != "step_rows" else each for each in (batch[name], value))
            )


def test_rows_as_a_hugging_face_data_set(url: str) -> None:
    rows = opened(url).row_numbers()
    assert rows["row"][:] == list(range(STEPS * ROWS))


def test_epochs_give_the_number_of_steps(url: str) -> None:
    dataset = opened(url, steps=None, epochs=1.5)
    samples_stored = dataset.manifest.totals.samples
    assert dataset.steps == int(np.ceil(1.5 * samples_stored / ROWS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows_per_step": 0}, "CacheDataset: rows_per_step: "),
        ({"steps": 0}, "CacheDataset: steps: "),
        ({"losses": {"tlas": {}}}, "CacheDataset: losses: tlas: "),
        ({"losses": {"apc": {"weight": {"start": 1, "end": 1}}}}, "attention"),
        ({"pack": True}, "CacheDataset: pack: "),
        ({"align": "all"}, "CacheDataset: align: a setting of train-student only"),
    ],
    ids=["rows", "steps", "loss", "signal", "setting", "align"],
)
def test_settings_that_are_refused(url: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        opened(url, **changes)
    assert message in str(error.value)


def test_rows_of_another_order_are_refused(url: str) -> None:
    dataset = opened(url)
    with pytest.raises(UserError, match=r"rows \[3, 1\]… do not follow each other; .*shuffle=False"):
        dataset.__getitems__([3, 1])
    with pytest.raises(UserError, match=r"4 rows from 6 on are of two steps of rows_per_step = 8 rows"):
        dataset.__getitems__([6, 7, 8, 9])
    with pytest.raises(IndexError, match=r"rows 160 to 160 of 160"):
        dataset[STEPS * ROWS]
    with pytest.raises(UserError, match=r"micro-batches of 3 rows on rank 0 of 2 do not make up steps of .* = 8 rows"):
        dataset.loader(3, rank=0, ranks=2)
    with pytest.raises(UserError, match=r"collate: got a list, wanted .*remove_unused_columns=False"):
        dataset.collate([dataset[0]])


def test_states_of_other_runs_are_refused(url: str) -> None:
    dataset = opened(url)
    for changes in ({"seed": 6}, {"steps": 19}, {"rows_per_step": 4, "steps": 40}, {"packing": True}):
        name = next(iter(changes))
        with pytest.raises(UserError, match=rf"CacheDataset: {name} is .*, that of the state to continue from is"):
            opened(url, **changes).load_state_dict(dataset.state_dict())
    with pytest.raises(UserError, match="cache_digest"):
        dataset.load_state_dict({**dataset.state_dict(), "cache_digest": "0"})
    for rows in (-8, 3, STEPS * ROWS + ROWS):
        with pytest.raises(UserError, match=rf"{rows} rows consumed: wanted a multiple of rows_per_step = 8, .* 160"):
            dataset.seek(rows)
    loader = stateful(dataset, "map", 0)
    next(iter(loader))
    state = loader.state_dict()
    other = stateful(dataset, "map", 0, batch_size=4)
    other.load_state_dict(state)
    with pytest.raises(UserError, match=r"with other batches or ranks continue by rows"):
        next(iter(other))
