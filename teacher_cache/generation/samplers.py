"""The samplers: vLLM, and transformers as the reference."""

from schemas.generate_config import GenerateConfig
from teacher_cache.generation.sampler import Sampler


def open_sampler(config: GenerateConfig) -> Sampler:
    """Load the generator in the configured engine. Raises UserError if that fails."""
    if config.engine.kind == "vllm":
        from teacher_cache.generation.vllm_sampler import VllmSampler

        return VllmSampler(config)
    from teacher_cache.generation.reference_sampler import ReferenceSampler

    return ReferenceSampler(config)
