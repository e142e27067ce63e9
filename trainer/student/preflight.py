"""Checks before the first step: model and tokenizer survive saving and loading, the disk has room for a checkpoint and
the final model, the longest sample fits the student's positions.
"""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from schemas.errors import FullError, UserError
from schemas.train_config import StudentConfig
from teacher_cache.lengths import max_length, rope_settings
from teacher_cache.text import one_line
from teacher_cache.tokenizer import describe_tokenizer
from trainer.student.build import load_model_config
from trainer.student.student_tokenizer import copy_tokenizer, load_tokenizer, tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)
TRIAL = ".tmp-preflight"
STATE_BYTES = 12  # per parameter in a checkpoint: weight and two AdamW states, float32
ALIBI = ("bloom", "mpt")


def check_output(output: Path) -> None:
    """Raise UserError if ``output`` or one of its parents exists and is not a folder."""
    found = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not found.is_dir():
        raise UserError(f"output: {found}: is a file, wanted a folder; choose another path")


def check_saving(model: "PreTrainedModel", settings: StudentConfig, init_folder: Path, output: Path) -> None:
    """Save everything but the weights to a temporary folder in ``output`` and load it again.

    Raises UserError if that fails or changes the tokenizer, OSError if ``output`` is not writable.
    """
    trial = output / TRIAL
    shutil.rmtree(trial, ignore_errors=True)
    trial.mkdir(parents=True)
    try:
        try:
            model.save_pretrained(trial, state_dict={})
        except OSError:
            raise
        except Exception as error:  # third-party model classes can raise anything
            raise UserError(f"student: {init_folder}: cannot be saved again: {one_line(str(error))}") from None
        load_model_config(trial, "student", settings.trust_remote_code)
        if tokenizer_files(init_folder):
            copy_tokenizer(init_folder, trial, settings.trust_remote_code)
            _check_same_tokenizer(init_folder, trial, settings.trust_remote_code)
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _check_same_tokenizer(source: Path, copy: Path, trust_remote_code: bool) -> None:
    found, wanted = (load_tokenizer(folder, "student", trust_remote_code) for folder in (copy, source))
    for what, one, other in (
        ("tokens", describe_tokenizer(found).fingerprint, describe_tokenizer(wanted).fingerprint),
        ("chat templates", found.chat_template, wanted.chat_template),
    ):
        if one != other:
            raise UserError(
                f"student: {source}: a copy of its tokenizer files has other {what}: the tokenizer needs a file that "
                "is not recognised as its own; save it again with save_pretrained and use that folder"
            )


def check_room(model: "PreTrainedModel", settings: StudentConfig, output: Path) -> None:
    """Raise FullError if the disk has no room for one checkpoint and the final model, the least a run writes."""
    itemsize = getattr(torch, settings.dtype).itemsize
    parameters = model.num_parameters(only_trainable=True)
    needed = parameters * (STATE_BYTES + itemsize)
    if settings.adapter is not None and settings.adapter.merge:
        needed += model.num_parameters() * itemsize
    free = shutil.disk_usage(output).free
    if free < needed:
        raise FullError(
            f"output: {output}: {free / 2**30:.3g} GiB are free; a checkpoint and the final model of {parameters:,} "
            f"parameters take {needed / 2**30:.3g} GiB; free some space there, or change `output`"
        )


def check_positions(student: "PreTrainedConfig", longest: int, where: str, key: str = "student") -> None:
    """Raise UserError if a sample of ``longest`` tokens exceeds the student's position embeddings.

    Rotary and ALiBi positions are unbounded: beyond the configured length they only log a warning.
    """
    limit = max_length(student)
    if limit is None or longest <= limit:
        return
    if rope_settings(student) or getattr(student, "alibi", False) or student.model_type in ALIBI:
        logger.warning(
            "%s: configured for up to %d tokens, and a sample of %s has %d: serving engines may refuse such lengths; "
            "raise max_position_embeddings (or set rope scaling) in its config.json if this is intended",
            key,
            limit,
            where,
            longest,
        )
        return
    raise UserError(
        f"{key}: a {student.model_type} model with positions for {limit} tokens, and a sample of {where} has {longest}"
        f"; choose a student with more positions, or a cache with corpus.max_tokens of {limit} or less"
    )
