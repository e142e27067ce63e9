"""Ways to run the teacher: vLLM, and transformers as the reference."""

from schemas.cache_config import CacheConfig
from teacher_cache.engines.engine import Engine

__all__ = ["Engine", "load_engine", "open_engine"]


def open_engine(config: CacheConfig) -> Engine:
    """Load the teacher in the engine that ``config`` names, and check it. Raises UserError.

    So when engine or model cannot be loaded, or give other values than they should (see ``self_check``).
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
    """The same, unchecked."""
    if config.engine.kind == "vllm":
        from teacher_cache.engines.vllm import VllmEngine

        return VllmEngine(config)
    from teacher_cache.engines.transformers import TransformersEngine

    return TransformersEngine(config)
