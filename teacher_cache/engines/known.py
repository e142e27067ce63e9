"""Cases where vLLM is known to compute other values than transformers, detected from the configuration alone."""

from typing import Any

from schemas.cache_config import CacheConfig
from schemas.errors import UserError


def check_known(config: CacheConfig, model_config: Any) -> None:
    """Raise UserError if vLLM would compute other values than transformers, on any device."""
    if config.engine.kind != "vllm":
        return
    text_config = model_config.get_text_config()
    kind, window = text_config.model_type, getattr(text_config, "sliding_window", None)
    if kind == "cohere2" and window is not None and config.corpus.max_tokens > window:
        raise UserError(
            f"corpus.max_tokens: {config.corpus.max_tokens}: vLLM 0.32 makes the sliding windows of a {kind} teacher "
            f"one token longer than transformers does; set it to {window} or less, or set engine.kind: transformers"
        )
    if kind == "gemma3n_text":
        raise UserError(
            f"teacher.path: {config.teacher.path}: vLLM 0.32 leaves out the per-layer embeddings of a {kind} teacher; "
            "set engine.kind: transformers"
        )
    if config.capture.hidden is not None and config.teacher.dtype == "float16" and kind.startswith("deepseek"):
        raise UserError(
            f"capture.hidden: vLLM scales the residual stream of a {kind} teacher in float16; set teacher.dtype: "
            "bfloat16, leave the signal out, or set engine.kind: transformers"
        )


def check_on_cpu(config: CacheConfig, text_config: Any) -> None:
    """Raise UserError if vLLM's CPU kernels compute other values than transformers.

    Separate from ``check_known`` because the platform is known only once vLLM is imported.
    """
    if getattr(text_config, "kv_lora_rank", None):
        raise UserError(
            f"teacher.path: {config.teacher.path}: vLLM 0.32 computes the multi-head latent attention of a "
            f"{text_config.model_type} teacher wrongly on CPUs; set engine.kind: transformers"
        )
