"""``run.json``: what a training run is, beside its metrics."""

from typing import Annotated, Any, Literal

from pydantic import Field

from schemas.strict import Strict


class RunFile(Strict):
    """Identity and settings of a run; written when training starts, again at each resume."""

    format: Literal[1] = 1
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")] = Field(
        description="Names the run to loggers; kept at resume."
    )
    started: str = Field(max_length=40, description="First start, ISO 8601.")
    starts: int = Field(1, ge=1, description="How often training started.")
    planned_steps: int = Field(ge=0)
    rows_per_step: int = Field(ge=1, description="Over all ranks.")
    ranks: int = Field(ge=1)
    parameters: int = Field(ge=0, description="Of the student.")
    device: str = Field(max_length=200)
    config: dict[str, Any] = Field(description="The configuration, with defaults.")
