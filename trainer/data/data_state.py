"""Where in the data a run stands: what a checkpoint remembers of it."""

from pydantic import BaseModel, ConfigDict


class DataState(BaseModel):
    """``data_state.json``: seed and digest name the order of the rows, ``rows_consumed`` says how far it was read.

    The rest follows from these, and saves work.
    """

    model_config = ConfigDict(extra="forbid")

    cache_digest: str = ""  # sha256 of the cache's manifest; of several caches, one over theirs
    seed: int = 0
    rows_consumed: int = 0  # rows of the plan; one step consumes one global batch
    tokens: int = 0  # in these rows
    skipped_samples: int = 0  # of these rows: they could not be read
    epochs: float | None = None  # the length of training that …
    planned_rows: int | None = None  # … takes so many rows
    places: list[tuple[int, int, int]] = []  # of each cache, first row, epoch and number of the group being read
