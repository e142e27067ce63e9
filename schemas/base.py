"""What every model of the contract has in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 1
"""Version of the cache format that this code writes, and the newest it reads."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """A pydantic model that refuses unknown keys and cannot be changed after it was validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
