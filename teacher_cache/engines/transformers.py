"""The reference engine: an ordinary ``transformers`` forward pass, against which vLLM is checked."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from teacher_cache.engines.base import Engine
from teacher_cache.records import LogitsSample
from teacher_cache.signals.logits import reduce_logits, to_sample
from teacher_cache.teacher import load_model_config

MAX_LOGITS_BYTES = 1 << 30


class TransformersEngine(Engine):
    """Right-padded batches of sequences of similar length through ``AutoModelForCausalLM``."""

    def __init__(self, config: CacheConfig) -> None:
        """Load the model. Raises UserError when it cannot be loaded."""
        from transformers import AutoModelForCausalLM

        device = config.engine.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._capture = config.capture.logits
        self._vocab_size = load_model_config(config.teacher).get_text_config().vocab_size
        self._batch_tokens = min(config.engine.max_batch_tokens, max(1, MAX_LOGITS_BYTES // (4 * self._vocab_size)))
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                config.teacher.path,
                revision=config.teacher.revision,
                dtype=getattr(torch, config.teacher.dtype),
                trust_remote_code=config.teacher.trust_remote_code,
            )
            self._model = self._model.eval().to(device)
        except Exception as error:  # whatever the loader of this model, and its file formats, may raise
            raise UserError(f"teacher.path: {config.teacher.path}: cannot load the model: {error}") from error

    def score(self, sequences: Sequence[np.ndarray]) -> list[LogitsSample]:
        """See Engine."""
        samples: dict[int, LogitsSample] = {}
        for batch in self._batches(sequences):
            for position, sample in zip(batch, self._score_batch([sequences[i] for i in batch]), strict=True):
                samples[position] = sample
        return [samples[position] for position in range(len(sequences))]

    def _batches(self, sequences: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """Positions, longest first, in batches of at most ``_batch_tokens`` padded tokens."""
        batch: list[int] = []
        for position in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
            if batch and (len(batch) + 1) * len(sequences[batch[0]]) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(position)
        if batch:
            yield batch

    @torch.inference_mode()
    def _score_batch(self, sequences: Sequence[np.ndarray]) -> Iterator[LogitsSample]:
        longest = max(len(ids) for ids in sequences)
        ids_BS = torch.zeros((len(sequences), longest), dtype=torch.long)
        mask_BS = torch.zeros((len(sequences), longest), dtype=torch.long)
        for row, ids in enumerate(sequences):
            ids_BS[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            mask_BS[row, : len(ids)] = 1
        ids_BS, mask_BS = ids_BS.to(self._model.device), mask_BS.to(self._model.device)
        logits_BSV = self._model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
        next_BS = ids_BS.roll(-1, dims=1)
        for row, ids in enumerate(sequences):
            rows = reduce_logits(
                logits_BSV[row, : len(ids), : self._vocab_size],
                next_BS[row, : len(ids)],
                self._capture.k,
                self._capture.temperatures,
            )
            yield to_sample(rows, self._capture)

    def close(self) -> None:
        """See Engine."""
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
