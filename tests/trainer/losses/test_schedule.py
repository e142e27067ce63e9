import pytest

from schemas.train_config import WeightSchedule
from trainer.losses.schedule import always_zero, weight_at


def test_linear_from_start_to_end() -> None:
    schedule = WeightSchedule(start=1.0, end=0.3)
    assert [weight_at(schedule, p) for p in (0, 0.5, 1)] == pytest.approx([1.0, 0.65, 0.3])


def test_hold_keeps_the_start() -> None:
    schedule = WeightSchedule(start=0.0, end=0.5, hold=0.2)
    assert [weight_at(schedule, p) for p in (0, 0.2, 0.6, 1)] == pytest.approx([0, 0, 0.25, 0.5])


def test_progress_outside_training_is_clamped() -> None:
    schedule = WeightSchedule(start=1.0, end=0.3)
    assert weight_at(schedule, -1) == 1.0
    assert weight_at(schedule, 2) == pytest.approx(0.3)


@pytest.mark.parametrize(("start", "end", "zero"), [(0, 0, True), (0, 0.1, False), (0.1, 0, False)])
def test_always_zero(start: float, end: float, zero: bool) -> None:
    assert always_zero(WeightSchedule(start=start, end=end)) is zero
