"""Have a model write texts, in either backend; what was written is kept, and a killed cell continues."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_tasks import WritingTask
from trainer.matrix.tasks.asked_text import Sampling, Writer
from trainer.matrix.tasks.kept_parts import KeptParts
from trainer.matrix.tasks.prompt_ids import PromptIds

VLLM_TEXTS = 256  # of a unit, at least those of one prompt
logger = logging.getLogger(__name__)


def written_texts(
    task: WritingTask,
    model: MatrixModel,
    backends: Backends,
    prompts: Sequence[str],
    names: Sequence[str],
    sampling: Sampling,
    folder: Path,
    max_prompt_tokens: int | None = None,
) -> list[list[str]]:
    """The texts that the model writes after each prompt; ``names``: of the prompts, for errors.

    Prompts of a unit are written together and kept together in ``folder``. Raises UserError.
    """
    tokenizer = PromptIds(model, task.chat)
    asked = [tokenizer.of(prompt, max_prompt_tokens) for prompt in prompts]
    limit = getattr(backends, task.backend).max_length
    longest = tokenizer.check_lengths(asked, sampling.max_new_tokens, names, limit)
    per_unit = max(1, VLLM_TEXTS // sampling.samples) if task.backend == "vllm" else 1
    units = [asked[at : at + per_unit] for at in range(0, len(asked), per_unit)]
    end_ids = tokenizer.end_ids()

    def open_writer() -> Writer:
        if task.backend == "hf":
            from trainer.matrix.tasks.hf_writer import HfWriter

            return HfWriter(model, backends.hf, tokenizer.tokenizer)
        from trainer.matrix.tasks.vllm_writer import VllmWriter

        return VllmWriter(model, backends.vllm, tokenizer.tokenizer, longest)

    return _of_units(units, sampling, end_ids, open_writer, folder)


def _of_units(
    units: Sequence[Sequence[list[int]]],
    sampling: Sampling,
    end_ids: Sequence[int],
    open_writer: Callable[[], Writer],
    folder: Path,
) -> list[list[str]]:
    """The texts of all units; the model is only loaded if some are missing."""
    parts = KeptParts(folder, TypeAdapter(list[list[str]]))
    asked = [[asdict(sampling), list(end_ids), list(unit)] for unit in units]
    found = [parts.find(each) for each in asked]
    missing = [place for place, texts in enumerate(found) if texts is None]
    if missing:
        with closing(open_writer()) as writer:
            for done, place in enumerate(missing, 1):
                texts = writer.write(units[place], sampling, end_ids)
                parts.keep(asked[place], texts)
                found[place] = texts
                logger.debug("%d of %d units are written", done, len(missing))
    return [texts for unit in found if unit is not None for texts in unit]
