"""Base classes of all schema models."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, SerializerFunctionWrapHandler, model_serializer
from pydantic_core import CoreSchema

FORMAT_VERSION = 1
"""Version of the cache format that this code writes, and the newest it reads."""

FORMAT_MINOR = 2
"""Newest minor version. Caches that do not need it are written without one, as version 1.0."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _fail_fast(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _fail_fast(part)
    elif isinstance(schema, list):
        for part in schema:
            _fail_fast(part)


class Strict(BaseModel):
    """An immutable pydantic model that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate lists fail-fast: with a million invalid entries, each would take a kilobyte to report."""
        schema = handler(source)
        _fail_fast(schema)
        return schema


def added(default: Any, description: str, **constraints: Any) -> Any:
    """A field of an ``Extended`` model that its first release lacked; ``constraints`` are passed to ``Field``."""
    return Field(default, description=description, json_schema_extra={"added": True}, **constraints)


class Extended(Strict):
    """A model that gained fields: those made by ``added`` are only serialized if they differ from their default.

    Older documents therefore serialize byte for byte as before: digests and fingerprints of old caches remain valid,
    and runs planned before can continue.
    """

    @model_serializer(mode="wrap")
    def _without_added_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = serialize(self)
        for name, field in type(self).model_fields.items():
            if _was_added(field.json_schema_extra) and getattr(self, name) == field.default:
                written.pop(name, None)
        return written


def _was_added(extra: Any) -> bool:
    return isinstance(extra, dict) and bool(extra.get("added"))
