"""The final model: choose its checkpoint, write its folder."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from schemas.errors import UserError
from schemas.train_config import StudentConfig
from trainer.run.checkpoint import RunState, damage
from trainer.run.finite import count_not_finite
from trainer.run.output_files import settle_folder, sync_folder
from trainer.student.build import load_model
from trainer.student.parallel import load_weights
from trainer.student.student_tokenizer import copy_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def best_checkpoint(output: Path, state: RunState, patience: int | None) -> Path | None:
    """Return the checkpoint to take the final model from; None: the last step. Raises UserError if it is damaged."""
    if state.best_step is None or state.best_kl is None or state.best_step == state.global_step:
        return None
    if patience is None:
        logger.warning(
            "loop.early_stopping_patience is not set: `final` has the weights of step %d, validation KL %.4g; those of "
            "step %d had %.4g", state.global_step, state.last_validation["kl"], state.best_step, state.best_kl,
        )  # fmt: skip
        return None
    folder = output / f"checkpoint-{state.best_step}"
    wrong = damage(folder)
    if wrong is not None:
        raise UserError(
            f"{folder}: has the best validation KL, but is not complete ({wrong}); restore the file from a copy, or "
            "unset loop.early_stopping_patience to take the last step's weights"
        )
    return folder


def load_final(folder: Path, settings: StudentConfig) -> "PreTrainedModel":
    """Load the model in ``folder`` in the final model's dtype, on the CPU. Raises UserError."""
    dtype = getattr(torch, settings.dtype)
    return load_model(folder, "student", dtype, trust_remote_code=settings.trust_remote_code)


def load_sharded(init_folder: Path, settings: StudentConfig, checkpoint: Path) -> "PreTrainedModel":
    """Load a sharded checkpoint's weights into the model of ``init_folder``, on the CPU of this process alone.

    The host's peak is the model in its final dtype: weights are cast as they are read. Raises UserError.
    """
    student = load_final(init_folder, settings)
    load_weights(student, checkpoint)
    return student


def save_final(
    student: "PreTrainedModel",
    settings: StudentConfig,
    init_folder: Path,
    folder: Path,
    card: str,
    add_files: Callable[[Path], None] | None = None,
) -> None:
    """Write the model in ``settings.dtype`` as a Hugging Face folder, atomically.

    add_files: gets the folder before it is in its place. Raises UserError.
    """
    student.config.use_cache = True  # the trainer turns it off
    student.to(getattr(torch, settings.dtype))
    if count_not_finite(student.parameters(), torch.device("cpu")):
        raise UserError(f"student.dtype: weights are too large for {settings.dtype}; set it to bfloat16 or float32")

    def write(unfinished: Path) -> None:
        student.save_pretrained(unfinished)
        copy_tokenizer(init_folder, unfinished, settings.trust_remote_code)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        if add_files is not None:
            add_files(unfinished)

    replace_folder(folder, write)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace ``folder`` by what ``write`` puts into the path that it gets, which does not exist; atomically."""
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    write(unfinished)
    settle_folder(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
    sync_folder(folder.parent)
