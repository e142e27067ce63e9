"""What interrupts a training run in tests."""

from typing import Any

from transformers import TrainerCallback

from teacher_cache.stop_request import StopRequest


class StopAt(TrainerCallback):
    """Asks for a stop, or fails, at the end of a step."""

    def __init__(self, step: int, stop: StopRequest | None = None) -> None:
        self.step, self.stop = step, stop

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            if self.stop is None:
                raise RuntimeError("crash")
            self.stop.signal_number = 15
