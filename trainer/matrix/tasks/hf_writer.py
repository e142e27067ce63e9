"""Texts by transformers, one prompt at a time: padding and neighbours would change the rounding."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from schemas.matrix_base import HfSettings, MatrixModel
from trainer.matrix.tasks.asked_text import Sampling, cut, seed_of
from trainer.matrix.tasks.prompt_ids import text_after
from trainer.run.quiet import quiet_transformers
from trainer.student.build import load_model


class HfWriter:
    """See ``Writer``."""

    def __init__(self, model: MatrixModel, settings: HfSettings, tokenizer: Any) -> None:
        """Load the model, on a GPU if there is one. Raises UserError."""
        quiet_transformers()
        key, dtype = f"models: {model.name}", getattr(torch, settings.dtype)
        loaded: Any = load_model(Path(model.folder), key, dtype, trust_remote_code=model.trust_remote_code)
        self._model = loaded.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._model.generation_config = GenerationConfig()  # the model's own defaults change nothing here
        self._batch, self._tokenizer = settings.batch_size, tokenizer

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, end_ids: Sequence[int]) -> list[list[str]]:
        """See ``Writer``."""
        return [self._write(prompt, sampling, end_ids) for prompt in prompts]

    @torch.inference_mode()
    def _write(self, prompt: Sequence[int], sampling: Sampling, end_ids: Sequence[int]) -> list[str]:
        ids_1S = torch.tensor([[*prompt]], device=self._model.device)
        drawn = (
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
        )
        settings = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=bool(drawn),
            eos_token_id=list(end_ids) or None,
            pad_token_id=end_ids[0] if end_ids else 0,
            stop_strings=list(sampling.stop) or None,
            **drawn,
        )
        texts: list[str] = []
        while len(texts) < sampling.samples:
            torch.manual_seed(seed_of(sampling.seed, prompt, len(texts)))
            written_BS = self._model.generate(
                input_ids=ids_1S,
                attention_mask=torch.ones_like(ids_1S),
                generation_config=settings,
                num_return_sequences=min(self._batch, sampling.samples - len(texts)),
                tokenizer=self._tokenizer,
            )[:, len(prompt) :]
            texts += [self._text(prompt, written_S, sampling, end_ids) for written_S in written_BS.tolist()]
        return texts

    def _text(self, prompt: Sequence[int], written: list[int], sampling: Sampling, end_ids: Sequence[int]) -> str:
        end = next((place for place, token in enumerate(written) if token in end_ids), len(written))
        return cut(text_after(self._tokenizer, prompt, written[:end]), sampling.stop)

    def close(self) -> None:
        """See ``Writer``."""
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
