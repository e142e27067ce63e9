"""Position of a run in its data, as saved in a checkpoint."""

from pydantic import BaseModel, ConfigDict


class DataState(BaseModel):
    """``data_state.json``: seed and digest determine the order of the rows, ``rows_consumed`` the position in it.

    The other fields are derived from these and save work on resume.
    """

    model_config = ConfigDict(extra="forbid")

    cache_digest: str = ""  # sha256 of the cache's manifest; for several caches, sha256 over theirs
    seed: int = 0
    rows_consumed: int = 0  # rows of the plan; one step consumes one global batch
    tokens: int = 0  # in the consumed rows
    skipped_samples: int = 0  # of the consumed rows, unreadable
    epochs: float | None = None  # loop.epochs that planned_rows belongs to
    planned_rows: int | None = None  # rows of the whole run
    places: list[tuple[int, int, int]] = []  # per cache: first row, epoch and number of the current group
