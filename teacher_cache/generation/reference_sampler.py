"""The reference sampler: transformers, one reply at a time, so that nothing depends on what it was batched with."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from schemas.errors import UserError
from schemas.generate_config import GenerateConfig
from teacher_cache.attention_implementation import exact_attention
from teacher_cache.generation.choose_token import choose, uniform
from teacher_cache.generation.sampler import Asked, Sampler, Written
from teacher_cache.model_class import model_class
from teacher_cache.model_folder import not_loaded
from teacher_cache.teacher import load_model_config


class ReferenceSampler(Sampler):
    """Prefill, then a token at a time with a key-value cache."""

    def __init__(self, config: GenerateConfig) -> None:
        """Load the model. Raises UserError if it cannot be loaded."""
        device = config.engine.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = config.generator
        model_config = load_model_config(generator, "generator.path")
        try:
            self._model: Any = model_class(model_config).from_pretrained(
                generator.path,
                revision=generator.revision,
                dtype=getattr(torch, generator.dtype),
                trust_remote_code=generator.trust_remote_code,
                attn_implementation=exact_attention(model_config),
            )
            self._model = self._model.eval().to(device)
        except Exception as error:  # whatever the loader of this model, and its file formats, may raise
            raise not_loaded(error, f"generator.path: {generator.path}: cannot load the model") from error
        self._device = device

    def write(self, asked: Sequence[Asked], on_written: Callable[[int], None]) -> list[Written]:
        """See Sampler."""
        written = []
        for one in asked:
            written.append(self._write(one))
            on_written(1)
        return written

    @torch.inference_mode()
    def _write(self, asked: Asked) -> Written:
        ids: list[int] = []
        fed = torch.from_numpy(asked.prompt_ids.astype(np.int64))[None].to(self._device)
        cache = None
        while len(ids) < asked.sampling.max_new_tokens:
            output = self._model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            if cache is None:
                raise UserError(
                    f"generator: a {type(self._model).__name__} keeps no key-value cache in transformers; set "
                    "engine.kind: vllm"
                )
            logits_V = output.logits[0, -1].float().cpu().numpy()
            ids.append(choose(logits_V, asked.sampling, uniform(asked.seed, len(ids))))
            if ids[-1] in asked.stop_ids:
                return Written(np.array(ids, np.uint32), "stop")
            fed = torch.tensor([[ids[-1]]], device=self._device)
        return Written(np.array(ids, np.uint32), "length")

    def close(self) -> None:
        """See Sampler."""
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
