"""Loss weights as functions of training progress: constant, then linear; this covers all schedules of the recipe."""

from schemas.train_config import WeightSchedule


def weight_at(schedule: WeightSchedule, progress: float) -> float:
    """The weight at ``progress``, the share of training steps done; clamped to [0, 1]."""
    ramp = min(max((progress - schedule.hold) / (1 - schedule.hold), 0.0), 1.0)
    return schedule.start + ramp * (schedule.end - schedule.start)


def always_zero(schedule: WeightSchedule) -> bool:
    """Whether the weight is 0 throughout training, so that the term is not computed."""
    return schedule.start == 0 and schedule.end == 0
