"""Near duplicates among records: MinHash signatures, bands that are sorted on disk, and clusters."""

from collections.abc import Sequence

import numpy as np

from schemas.curate_steps import DeduplicateStep
from teacher_cache.curation.curation_step import Decision, GlobalStep, StepPlace, Table
from teacher_cache.curation.record import Record


class Deduplicate(GlobalStep):
    """Of a cluster of near duplicates, the first record stays."""

    reasons = ("duplicate", "near_duplicate")

    def __init__(self, settings: DeduplicateStep, place: StepPlace) -> None:
        self._settings = settings

    def sketch(self, records: Sequence[Record]) -> np.ndarray:
        """See ``GlobalStep``."""
        raise NotImplementedError

    def decide(self, sketch_N: np.ndarray, table: Table) -> Decision:
        """See ``GlobalStep``."""
        raise NotImplementedError
