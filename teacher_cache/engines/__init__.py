"""Engines that run the teacher: vLLM, and transformers as the reference."""

from schemas.cache_config import CacheConfig
from teacher_cache.engines.engine import Engine

__all__ = ["Engine", "load_engine", "open_engine"]


def open_engine(config: CacheConfig) -> Engine:
    """Load the teacher in the configured engine and compare it with transformers (see ``self_check``).

    Raises UserError if the engine or the model cannot be loaded, or fails the self-check.
    """
    from teacher_cache.engines.self_check import expected, self_check

    wanted = expected(config)
    engine = load_engine(config)
    try:
        if wanted is not None:
            self_check(engine, config, wanted)
    except BaseException:
        engine.close()
        raise
    return engine


def load_engine(config: CacheConfig) -> Engine:
    """Load the teacher without the self-check. Raises UserError if the engine or the model cannot be loaded."""
    if config.engine.kind == "vllm":
        from teacher_cache.engines.vllm import VllmEngine

        return VllmEngine(config)
    from teacher_cache.engines.transformers import TransformersEngine

    return TransformersEngine(config)
