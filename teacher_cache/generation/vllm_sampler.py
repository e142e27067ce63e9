"""The vLLM sampler: continuous batching, a seed for each reply, token ids in and out.

vLLM has no tokenizer here: what it is given and what it returns are ids. Its scheduler runs in this process, and its
prefix cache (several replies to one prompt share the prompt's keys and values) is emptied before each call, so a call
has the same steps whenever it is made.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from schemas.errors import UserError
from schemas.generate_config import GenerateConfig
from teacher_cache.engines.text_only import make_importable
from teacher_cache.engines.vllm_errors import causes, reason
from teacher_cache.engines.vllm_import import import_vllm
from teacher_cache.generation.sampler import Asked, Sampler, Written
from teacher_cache.teacher import load_model_config

STEP_TOKENS = 8192  # on CPUs


def whole_prompts(longest: int) -> dict[str, Any]:
    """Settings with which vLLM 0.32 never reads a prompt in parts.

    After each part it turns the seeded generator of a request back, which those of CPUs cannot do. ``longest``: tokens
    of a sequence.
    """
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(STEP_TOKENS, longest)}


class VllmSampler(Sampler):
    """Writes replies with vLLM."""

    def __init__(self, config: GenerateConfig) -> None:
        """Load vLLM and the model. Raises UserError if either cannot be loaded."""
        vllm = import_vllm()
        on_cpu = vllm.platforms.current_platform.is_cpu()
        generator, engine = config.generator, config.engine
        architectures = load_model_config(generator, "generator.path").architectures or []
        longest = config.prompts.max_tokens + config.most_after_prompt
        with causes() as found:
            try:
                make_importable(architectures)
                self._llm: Any = vllm.LLM(
                    model=generator.path,
                    revision=generator.revision,
                    dtype=generator.dtype,
                    trust_remote_code=generator.trust_remote_code,
                    tensor_parallel_size=engine.tensor_parallel,
                    gpu_memory_utilization=engine.gpu_memory_utilization,
                    kv_cache_memory_bytes=engine.cpu_kv_cache_gib << 30 if on_cpu else None,
                    max_model_len=longest,
                    max_num_seqs=engine.max_sequences,
                    **(whole_prompts(longest) if on_cpu else {}),
                    generation_config="vllm",  # the model's own defaults change nothing here
                    skip_tokenizer_init=True,
                    language_model_only=True,
                    enforce_eager=engine.eager,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                )
            except Exception as error:  # whatever the loader of this model, and its file formats, may raise
                why = reason(error, found, "engine.max_sequences")
                raise UserError(f"generator.path: {generator.path}: vLLM cannot load the model: {why}") from error
        self._params = vllm.SamplingParams

    def write(self, asked: Sequence[Asked], on_written: Callable[[int], None]) -> list[Written]:
        """See Sampler. Raises UserError if vLLM fails."""
        self._llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": one.prompt_ids.tolist()} for one in asked]
        queued = self._llm.enqueue(prompts, [self._sampling(one) for one in asked], use_tqdm=False)
        places = {name.partition("-")[0]: place for place, name in enumerate(queued)}  # outputs have no random suffix
        written: dict[int, Written] = {}
        engine = self._llm.llm_engine
        while engine.has_unfinished_requests():
            done = [output for output in engine.step() if output.finished]
            for output in done:
                (one,) = output.outputs
                finish = "stop" if one.finish_reason == "stop" else "length"
                written[places[output.request_id]] = Written(np.array(one.token_ids, np.uint32), finish)
            if done:
                on_written(len(done))
        if len(written) < len(asked):
            raise RuntimeError(f"vLLM did not finish {len(asked) - len(written)} of {len(asked)} replies")
        return [written[place] for place in range(len(asked))]

    def _sampling(self, asked: Asked) -> Any:
        sampling = asked.sampling
        return self._params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=list(asked.stop_ids),
            seed=asked.seed,
            detokenize=False,
        )

    def close(self) -> None:
        """See Sampler."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
