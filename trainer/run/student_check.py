"""Whether the student can be trained as configured, before the first step."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from schemas.train_config import TrainConfig
from trainer.student.forward import check_head, check_packing, flattens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StudentCheck(TrainerCallback):
    """Refuses a student that cannot be trained as configured. A sharded one is whole nowhere before training begins."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def __call__(self, student: "PreTrainedModel") -> None:
        """Raise UserError unless head and packing work as they are used here."""
        check_head(student)
        if self.config.data.packing:
            check_packing(student, flatten=flattens(student))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The same, on all ranks."""
        self(kwargs["model"])
