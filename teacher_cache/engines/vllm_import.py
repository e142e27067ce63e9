"""Import vLLM with the settings of its environment that a single-process run needs."""

import os
import sys
from types import ModuleType

from schemas.errors import UserError
from teacher_cache.logs import shows_details


def import_vllm() -> ModuleType:
    """The module ``vllm``; its scheduler runs in this process. Raises UserError if it cannot be imported."""
    if not shows_details():
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # CUDA does not survive a fork
    os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")  # lengths are checked by the plan
    try:
        import vllm
        import vllm.platforms
    except ImportError as error:
        raise UserError(
            f"engine.kind: vllm: cannot be imported ({error}); install the extra 'teacher' (CPU) or 'gpu', or set "
            "engine.kind: transformers"
        ) from None
    _make_llvmlite_inspectable()
    return vllm


def _make_llvmlite_inspectable() -> None:
    """Make vLLM's CPU build loadable in a process that has imported numba.

    vLLM 0.32 calls ``vars`` on every attribute of every module, which fails for llvmlite's library wrapper: it resolves
    every attribute, ``__dict__`` too, as a function of the library.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None and not isinstance(getattr(ffi.lib, "__dict__", {}), dict):
        ffi.lib._fntab["__dict__"] = {}
