"""The length of what is learned, in tokens of the teacher."""

from collections.abc import Sequence

from schemas.curate_filters import LengthStep
from teacher_cache.curation.curation_step import StepPlace
from teacher_cache.curation.of_layers import LayerStep
from teacher_cache.curation.record import Record


class Length(LayerStep):
    """Too short or too long: the record leaves."""

    def __init__(self, settings: LengthStep, place: StepPlace) -> None:
        super().__init__(settings.layers, place)
        self._least, self._most = settings.min_tokens, settings.max_tokens

    def judge(self, records: Sequence[Record]) -> list[str]:
        """See ``LayerStep``."""
        return [
            "too_short" if record.n_tokens < self._least else "too_long" if record.n_tokens > self._most else ""
            for record in records
        ]
