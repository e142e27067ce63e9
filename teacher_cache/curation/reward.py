"""The best share of the records by a reward model, within each source and length.

Without lengths kept apart, many reward models choose length. Scores are kept, as the step's sketch, so the share is
exact.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from schemas.curate_filters import RewardStep
from schemas.errors import UserError
from teacher_cache.curation.best_share import best_share
from teacher_cache.curation.curation_step import Decision, GlobalStep, StepPlace, Table
from teacher_cache.curation.of_layers import known_layers
from teacher_cache.curation.record import Record
from teacher_cache.curation.reward_inputs import RewardInput, RewardInputs
from teacher_cache.teacher import load_model_config, load_tokenizer, model_fingerprint

SCORED, TRUNCATED, REFUSED, LEFT_ALONE = range(4)  # how a record was scored


class Scorer(Protocol):
    """What runs a reward model."""

    def score(self, inputs: Sequence[RewardInput]) -> np.ndarray:
        """All outputs of the model for each input, before any activation: float32 [N, L]."""


class Reward(GlobalStep):
    """Records leave that score lower than the best share, or that the model cannot read."""

    reasons = ("low_reward", "not_scored")
    one_process = True

    def __init__(self, settings: RewardStep, place: StepPlace) -> None:
        self._settings, self._key = settings, place.key
        self._layers = known_layers(settings.layers, place)

    def fingerprint(self) -> str:
        """The reward model's. Raises UserError if it is none, or `label` is none of its outputs."""
        self._check_kind()
        self._check_label(self._config.num_labels)
        return model_fingerprint(self._settings.model.path, f"{self._key}.model.path")

    def sketch(self, records: Sequence[Record]) -> np.ndarray:
        """Score and how it came about, float32 [N, 2]."""
        scores = np.full((len(records), 2), (0, LEFT_ALONE), np.float32)
        chosen = [place for place, record in enumerate(records) if record.layer in self._layers]
        encoded = self._inputs.encode([records[place] for place in chosen])
        scores[chosen, 1] = REFUSED
        places = [place for place, one in zip(chosen, encoded, strict=True) if one is not None]
        inputs = [one for one in encoded if one is not None]
        if inputs:
            scores[places, 0] = self._chosen(self._scorer.score(inputs))
            scores[places, 1] = [TRUNCATED if one.truncated else SCORED for one in inputs]
        return scores

    def decide(self, sketch_N: np.ndarray, table: Table) -> Decision:
        """See ``GlobalStep``. The notes say how many stay, and down to which score, by source and length."""
        how_N = sketch_N[:, 1]
        code_N = np.where(how_N == REFUSED, 2, 0).astype(np.uint8)
        (scored,) = np.nonzero(how_N <= TRUNCATED)
        score_S = sketch_N[scored, 0]
        n_bins = len(self._settings.bins) + 1
        bin_S = np.searchsorted(self._settings.bins, table.n_tokens_N[scored], side="right")
        group_S = table.source_N[scored].astype(np.int64) * n_bins + bin_S
        best_S = best_share(score_S, group_S, table.number_N[scored], self._settings.share)
        code_N[scored[~best_S]] = 1
        notes = {
            "truncated": int((how_N == TRUNCATED).sum()),
            "groups": [
                {
                    "source": int(group // n_bins),
                    "tokens": self._range(int(group % n_bins)),
                    "scored": int((group_S == group).sum()),
                    "kept": int(best_S[group_S == group].sum()),
                    "lowest_kept": float(score_S[best_S & (group_S == group)].min()),
                }
                for group in np.unique(group_S)
            ],
        }
        return Decision(code_N, notes)

    def _range(self, number: int) -> str:
        limits = [0, *self._settings.bins]
        return f"{limits[number]}–{limits[number + 1] - 1}" if number + 1 < len(limits) else f"≥ {limits[number]}"

    def _chosen(self, outputs_NL: np.ndarray) -> np.ndarray:
        """The output that is the score. Raises UserError if it is not clear which, or not a number."""
        self._check_label(outputs_NL.shape[1])
        score_N = outputs_NL[:, self._settings.label or 0]
        if not np.isfinite(score_N).all():
            raise UserError(
                f"{self._key}: {np.count_nonzero(~np.isfinite(score_N))} of {len(score_N)} scores are not finite; set "
                "`model.dtype: float32`"
            )
        return score_N

    def _check_kind(self) -> None:
        """Raise UserError for a model without outputs to score by, which would get random ones."""
        names = self._config.architectures or []
        if not self._settings.model.trust_remote_code and not any("SequenceClassification" in name for name in names):
            raise UserError(
                f"{self._key}.model.path: {self._settings.model.path}: {', '.join(names) or 'no architecture'} is no "
                "sequence-classification model; pass a reward model or another classifier"
            )

    def _check_label(self, n_labels: int) -> None:
        label = self._settings.label
        if (label is None and n_labels > 1) or (label is not None and label >= n_labels):
            raise UserError(
                f"{self._key}.label: {label}: the model has {n_labels} outputs; set the number of the one that is the "
                f"score, 0 to {n_labels - 1}"
            )

    @cached_property
    def _config(self) -> Any:
        return load_model_config(self._settings.model, f"{self._key}.model.path")

    @cached_property
    def _longest(self) -> int:
        """Tokens that an input may have: of the settings, the model and its tokenizer the least."""
        positions = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        of_model = [positions] if isinstance(positions, int) and positions > 0 else []
        return min([self._settings.max_tokens, self._tokenizer.model_max_length, *of_model])

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._settings.model, f"{self._key}.model.path")

    @cached_property
    def _inputs(self) -> RewardInputs:
        return RewardInputs(self._tokenizer, self._longest)

    @cached_property
    def _scorer(self) -> Scorer:
        if self._settings.engine.kind == "vllm":
            from teacher_cache.curation.vllm_scorer import VllmScorer

            return VllmScorer(self._settings, self._key, self._longest)
        from teacher_cache.curation.transformers_scorer import TransformersScorer

        return TransformersScorer(self._settings, self._key)
