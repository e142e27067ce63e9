"""What transformers itself would print."""

import transformers

from teacher_cache.logs import shows_details


def quiet_transformers() -> None:
    """Keep transformers' own messages and progress bars off the terminal, unless details are asked for."""
    if shows_details():
        return
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
