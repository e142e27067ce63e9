"""Scores of a reward model by vLLM's ``classify``, which is given token ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas.curate_filters import RewardStep
from schemas.errors import UserError
from teacher_cache.curation.reward_inputs import RewardInput
from teacher_cache.engines.text_only import make_importable
from teacher_cache.engines.vllm_errors import causes, reason
from teacher_cache.engines.vllm_import import import_vllm
from teacher_cache.teacher import load_model_config


class VllmScorer:
    """The model in vLLM, whose scheduler makes the batches."""

    def __init__(self, settings: RewardStep, key: str, longest: int) -> None:
        """Load the model. Raises UserError that names ``key`` if it cannot be loaded.

        longest: tokens of an input.
        """
        vllm = import_vllm()
        on_cpu = vllm.platforms.current_platform.is_cpu()
        model, engine, self._key = settings.model, settings.engine, key
        architectures = load_model_config(model, f"{key}.model.path").architectures or []
        with causes() as found:
            try:
                make_importable(architectures)
                self._llm: Any = vllm.LLM(
                    model=model.path,
                    runner="pooling",
                    revision=model.revision,
                    dtype=model.dtype,
                    trust_remote_code=model.trust_remote_code,
                    gpu_memory_utilization=engine.gpu_memory_utilization,
                    kv_cache_memory_bytes=engine.cpu_kv_cache_gib << 30 if on_cpu else None,
                    max_model_len=longest,
                    max_num_batched_tokens=max(engine.batch_tokens, longest),
                    enable_prefix_caching=False,  # a score depends on nothing that was scored before
                    language_model_only=True,
                    enforce_eager=engine.eager,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                )
            except Exception as error:  # whatever the loader of this model, and its file formats, may raise
                why = reason(error, found, f"{key}.engine.batch_tokens")
                raise UserError(f"{key}.model.path: {model.path}: vLLM cannot load the model: {why}") from error
        self._params = vllm.PoolingParams(task="classify", use_activation=False)

    def score(self, inputs: Sequence[RewardInput]) -> np.ndarray:
        """As ``TransformersScorer.score``. Raises UserError for inputs with token types."""
        if any(one.types.any() for one in inputs):
            raise UserError(
                f"{self._key}.engine.kind: vllm: the model's tokenizer tells prompt and reply apart by token types, "
                "which vLLM is not given; set `kind: transformers`"
            )
        prompts = [{"prompt_token_ids": one.ids.tolist()} for one in inputs]
        outputs = self._llm.classify(prompts, pooling_params=self._params, use_tqdm=False)
        return np.array([output.outputs.probs for output in outputs], np.float32)

    def close(self) -> None:
        """Give the engine's memory back."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
