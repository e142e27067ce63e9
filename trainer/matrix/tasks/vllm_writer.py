"""Texts by vLLM, many at a time, in this process."""

import os
from collections.abc import Sequence
from typing import Any

from schemas.errors import UserError
from schemas.matrix_base import MatrixModel, VllmSettings
from teacher_cache.inspectable_llvmlite import make_inspectable
from teacher_cache.logs import shows_details
from teacher_cache.text import reason_of
from trainer.matrix.tasks.asked_text import Sampling, cut, seed_of
from trainer.matrix.tasks.prompt_ids import text_after

STEP_TOKENS = 8192  # on CPUs


class VllmWriter:
    """See ``Writer``."""

    def __init__(self, model: MatrixModel, settings: VllmSettings, tokenizer: Any, longest: int) -> None:
        """Load the model; longest: tokens of a prompt and its text. Raises UserError."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # it ends with this process
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        if not shows_details():
            os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise UserError(
                f"backend: vllm: cannot be imported ({error}); install the extra 'teacher' (CPU) or 'gpu', or set "
                "backend: hf"
            ) from None
        make_inspectable()
        on_cpu = current_platform.is_cpu()
        whole_prompts: dict[
            str, Any
        ] = {  # seeded generators of CPUs cannot be turned back, as reading a prompt in parts does
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(STEP_TOKENS, longest),
            "kv_cache_memory_bytes": settings.cpu_kv_cache_gib << 30,
        }
        try:
            self._llm: Any = vllm.LLM(
                model=model.folder,
                dtype=settings.dtype,
                trust_remote_code=model.trust_remote_code,
                tensor_parallel_size=settings.tensor_parallel,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                max_model_len=longest,
                generation_config="vllm",  # the model's own defaults change nothing here
                enforce_eager=settings.eager,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **(whole_prompts if on_cpu else {}),
            )
        except Exception as error:  # whatever the loader of this model, and its file formats, may raise
            raise UserError(f"{model.folder}: vLLM cannot load the model{reason_of(error)}") from error
        self._params, self._tokenizer = vllm.SamplingParams, tokenizer

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, end_ids: Sequence[int]) -> list[list[str]]:
        """See ``Writer``."""
        self._llm.reset_prefix_cache()  # so that a call has the same steps whenever it is made
        asked = [(prompt, number) for prompt in prompts for number in range(sampling.samples)]
        found = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt, _ in asked],
            [self._sampling(sampling, end_ids, seed_of(sampling.seed, *one)) for one in asked],
            use_tqdm=False,
        )
        texts = [
            cut(text_after(self._tokenizer, prompt, self._ids(output, end_ids)), sampling.stop)
            for (prompt, _), output in zip(asked, found, strict=True)
        ]
        return [texts[at : at + sampling.samples] for at in range(0, len(texts), sampling.samples)]

    def _sampling(self, sampling: Sampling, end_ids: Sequence[int], seed: int) -> Any:
        return self._params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            stop=list(sampling.stop),
            stop_token_ids=list(end_ids),
            seed=seed if sampling.temperature else None,
        )

    @staticmethod
    def _ids(output: Any, end_ids: Sequence[int]) -> list[int]:
        ids = list(output.outputs[0].token_ids)
        return ids[:-1] if ids and ids[-1] in end_ids else ids

    def close(self) -> None:
        """See ``Writer``."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
