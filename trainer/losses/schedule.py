"""Loss weights as functions of training progress: flat, then one straight line. The recipe's schedules all have it."""

from schemas.train_config import WeightSchedule


def weight_at(schedule: WeightSchedule, progress: float) -> float:
    """The weight at ``progress`` in [0, 1], the share of training steps that are done; clamped outside."""
    ramp = min(max((progress - schedule.hold) / (1 - schedule.hold), 0.0), 1.0)
    return schedule.start + ramp * (schedule.end - schedule.start)


def always_zero(schedule: WeightSchedule) -> bool:
    """True when the weight is 0 during the whole of training, so that the term need not be computed."""
    return schedule.start == 0 and schedule.end == 0
