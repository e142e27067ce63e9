"""Scores of a reward model by transformers: batches of similar lengths, padded on the right."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from schemas.curate_filters import RewardStep
from schemas.errors import UserError
from teacher_cache.curation.reward_inputs import RewardInput, batches
from teacher_cache.model_folder import not_loaded


class TransformersScorer:
    """The model, on a GPU if there is one."""

    def __init__(self, settings: RewardStep, key: str) -> None:
        """Load the model. Raises UserError that names ``key`` if it cannot be loaded."""
        from transformers import AutoModelForSequenceClassification

        model, self._batch_tokens = settings.model, settings.engine.batch_tokens
        try:
            loaded, found = AutoModelForSequenceClassification.from_pretrained(
                model.path,
                revision=model.revision,
                dtype=getattr(torch, model.dtype),
                trust_remote_code=model.trust_remote_code,
                output_loading_info=True,
            )
            self._model: Any = loaded.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        except Exception as error:  # whatever the loader of this model, and its file formats, may raise
            raise not_loaded(error, f"{key}.model.path: {model.path}: cannot load the model") from error
        if missing := sorted(found["missing_keys"]):
            raise UserError(
                f"{key}.model.path: {model.path}: no weights of {', '.join(missing)[:200]}, which would be random; "
                "pass a whole sequence-classification model"
            )

    @torch.inference_mode()
    def score(self, inputs: Sequence[RewardInput]) -> np.ndarray:
        """All outputs of the model for each input, before any activation: float32 [N, L]."""
        found: list[Any] = [None] * len(inputs)
        for places in batches(inputs, self._batch_tokens):
            logits_BL = self._logits([inputs[place] for place in places])
            for place, logits in zip(places, logits_BL.float().cpu().numpy(), strict=True):
                found[place] = logits
        return np.array(found, np.float32)

    def _logits(self, inputs: Sequence[RewardInput]) -> torch.Tensor:
        shape = len(inputs), max(len(one.ids) for one in inputs)
        ids_BS, types_BS, mask_BS = (np.zeros(shape, np.int64) for _ in range(3))
        ids_BS += self._padding(inputs)
        for row, one in enumerate(inputs):
            ids_BS[row, : len(one.ids)], types_BS[row, : len(one.ids)] = one.ids, one.types
            mask_BS[row, : len(one.ids)] = 1
        given = {"input_ids": ids_BS, "attention_mask": mask_BS}
        if types_BS.any():
            given["token_type_ids"] = types_BS
        device = self._model.device
        output = self._model(**{name: torch.from_numpy(array).to(device) for name, array in given.items()})
        logits_BL: torch.Tensor = output.logits
        return logits_BL

    def _padding(self, inputs: Sequence[RewardInput]) -> int:
        """The id to pad with: the model's own, unless inputs hold it.

        Decoders take the output at the last token that is not padding, and often pad with the token that ends a turn.
        """
        config = self._model.config.get_text_config()
        used = np.unique(np.concatenate([one.ids for one in inputs]))
        padding = config.pad_token_id
        if padding is None or padding in used:
            padding = int(np.setdiff1d(np.arange(len(used) + 1), used)[0])
            config.pad_token_id = padding
        return int(padding)
