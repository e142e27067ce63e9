"""Import vLLM with the settings of its environment that a single-process run needs."""

import os
from types import ModuleType

from schemas.errors import UserError
from teacher_cache.inspectable_llvmlite import make_inspectable
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
    make_inspectable()
    return vllm
