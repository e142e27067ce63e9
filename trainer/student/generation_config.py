"""Repair generation settings that transformers loads but refuses to save."""

import logging
import re
from typing import TYPE_CHECKING

from schemas.errors import UserError
from teacher_cache.text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
UNUSED_FLAG = re.compile(r"^- `(\w+)`:", re.MULTILINE)  # in transformers' message


def mend_generation(model: "PreTrainedModel", where: str) -> None:
    """Unset ineffective generation flags (temperature with ``do_sample: false``), which transformers refuses to save.

    Generation does not change. Raises UserError if the settings stay invalid.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    try:
        config.validate(strict=True)
        return
    except ValueError as error:
        unused = UNUSED_FLAG.findall(str(error))
    for name in unused:
        setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise UserError(
            f"{where}: its generation configuration cannot be saved: {one_line(str(error))}; correct "
            "generation_config.json"
        ) from None
    logger.warning(
        "%s: generation_config.json sets %s, which have no effect with its other settings; the student drops them",
        where,
        ", ".join(unused),
    )
