"""A chat as a cache keeps it beside its rendered text, so that it can be rendered again with another chat template.

Text that the rendering holds is kept as a byte span of it; everything else is kept as it was given.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from schemas.strict import Strict

Offset = Annotated[int, Field(ge=0, lt=2**32)]
Key = Annotated[str, Field(min_length=1, max_length=64)]
MAX_MESSAGES = 1 << 16


class ChatMessage(Strict):
    """One message. Keys are in ``spans`` or in ``fields``, in no other place."""

    role: Annotated[str, Field(max_length=256)]
    learned: bool = Field(False, description="Whether it is a reply that is trained on.")
    closed: bool = Field(False, description="Whether the reply is whole, with the end of turn that follows it.")
    spans: dict[Key, tuple[Offset, Offset]] = Field({}, description="First byte and end of `content`, `reasoning`, …")
    fields: dict[Key, Any] = Field({}, description="Other keys, and texts that the rendering lacks.")

    @model_validator(mode="after")
    def _each_key_once(self) -> "ChatMessage":
        if twice := sorted({*self.spans, "role"} & self.fields.keys()):
            raise ValueError(f"{twice[0]} is given twice")
        if any(start > end for start, end in self.spans.values()):
            raise ValueError("a span ends before it begins")
        return self

    def restored(self, text: bytes) -> dict[str, Any]:
        """The message as it was given. ``text``: UTF-8 of the rendering."""
        said = {key: text[start:end].decode(errors="replace") for key, (start, end) in self.spans.items()}
        return {"role": self.role, **said, **self.fields}


class ChatRecord(Strict):
    """A chat. One without messages is a piece from the middle of a chat that was cut, or its messages are not known."""

    messages: Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES)]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = Field({})

    def to_json(self) -> bytes:
        """Compact JSON without defaults."""
        return self.model_dump_json(exclude_defaults=True).encode()
