"""Check before the first step that the student's architecture is supported."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from schemas.train_config import TrainConfig
from trainer.student.forward import check_head, check_packing, flattens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StudentCheck(TrainerCallback):
    """Checks output head and packing. For a sharded student it runs as a callback, once FSDP has wrapped it."""

    def __init__(self, config: TrainConfig, arguments: TrainingArguments) -> None:
        """With ``arguments.bf16`` the check runs under autocast, like training: Flash Attention takes 16 bits only."""
        self.config = config
        self.autocast = torch.autocast(arguments.device.type, torch.bfloat16, enabled=arguments.bf16)

    def __call__(self, student: "PreTrainedModel") -> None:
        """Raise UserError if output head or packing are not supported for this architecture."""
        with self.autocast:
            check_head(student)
            if self.config.data.packing:
                check_packing(student, flatten=flattens(student))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run the check on all ranks."""
        self(kwargs["model"])
