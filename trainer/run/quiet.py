"""Silence transformers' own output, and what it logs through other libraries."""

import logging

import transformers

from teacher_cache.logs import shows_details


def quiet_transformers() -> None:
    """Turn off transformers' messages and progress bars, unless --verbose."""
    if shows_details():
        return
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels from the hub that it cannot load
