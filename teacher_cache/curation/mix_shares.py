"""Layers of the data mix, cut to shares of tokens that count."""

from collections.abc import Sequence

import numpy as np

from schemas.curate_steps import MixStep
from teacher_cache.curation.curation_step import Decision, GlobalStep, StepPlace, Table
from teacher_cache.curation.record import Record


class Mix(GlobalStep):
    """Chooses records of each layer, by a hash, until its share is reached."""

    reasons = ("over_share",)

    def __init__(self, settings: MixStep, place: StepPlace) -> None:
        self._settings = settings

    def sketch(self, records: Sequence[Record]) -> np.ndarray:
        """See ``GlobalStep``."""
        raise NotImplementedError

    def decide(self, sketch_N: np.ndarray, table: Table) -> Decision:
        """See ``GlobalStep``."""
        raise NotImplementedError
