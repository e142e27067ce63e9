"""Ways to run the teacher: vLLM, and transformers as the reference."""

from schemas.cache_config import CacheConfig
from teacher_cache.engines.base import Engine

__all__ = ["Engine", "open_engine"]


def open_engine(config: CacheConfig) -> Engine:
    """Load the teacher in the engine that ``config`` names. Raises UserError when engine or model cannot be loaded."""
    if config.engine.kind == "vllm":
        from teacher_cache.engines.vllm import VllmEngine

        return VllmEngine(config)
    from teacher_cache.engines.transformers import TransformersEngine

    return TransformersEngine(config)
