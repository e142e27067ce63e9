"""Silence transformers' own output."""

import transformers

from teacher_cache.logs import shows_details


def quiet_transformers() -> None:
    """Turn off transformers' messages and progress bars, unless --verbose."""
    if shows_details():
        return
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
