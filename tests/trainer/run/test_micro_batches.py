import weakref

import torch

from trainer.run.micro_batches import MicroBatches


class Moved:
    """Stands for a tensor on the device."""


class Waiting:
    """Stands for a tensor on the CPU; counts what is alive of what it was moved to."""

    def __init__(self, number: int, alive: weakref.WeakSet) -> None:
        self.number, self.alive = number, alive

    def to(self, device: torch.device, non_blocking: bool) -> Moved:
        assert non_blocking
        moved = Moved()
        moved.number = self.number
        self.alive.add(moved)
        return moved


def test_the_device_holds_the_batch_that_is_computed_and_the_next_one() -> None:
    alive: weakref.WeakSet[Moved] = weakref.WeakSet()
    batches = MicroBatches([{"input_ids": Waiting(number, alive)} for number in range(5)], torch.device("cpu"))
    assert len(batches) == 5
    assert not alive
    seen = []
    for batch in batches:  # the variable keeps the previous batch while the next one is fetched, as in the trainer
        seen.append(batch["input_ids"].number)
        assert {moved.number for moved in alive} == {seen[-1], min(seen[-1] + 1, 4)}
    assert seen == [0, 1, 2, 3, 4]
    assert not alive
