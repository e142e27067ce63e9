"""What a record of a curated corpus is, as JSON in its row: a document, or the fields of a generated reply."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from schemas.generate_config import MAX_SAMPLES
from schemas.strict import Strict

Objects = list[dict[str, Any]]
Word = Annotated[str, Field(max_length=64)]


class DocumentContent(Strict):
    """A document: ``messages`` for a chat, otherwise ``text``."""

    text: str = ""
    prompt_chars: Annotated[int, Field(ge=0)] = Field(0, description="Leading characters of the text that are context.")
    messages: Objects | None = None
    tools: Objects | None = None
    documents: Objects | None = None
    template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _prompt_is_in_the_text(self) -> "DocumentContent":
        if self.prompt_chars > len(self.text):
            raise ValueError(f"prompt_chars is {self.prompt_chars}, but the text has {len(self.text)} characters")
        return self

    def to_json(self) -> bytes:
        """Compact JSON without defaults."""
        return self.model_dump_json(exclude_defaults=True).encode()


class ReplyContent(Strict):
    """Of a generated reply what is not in columns of its own; ``schemas.arrow`` says what the fields are."""

    key: Word
    sample: Annotated[int, Field(ge=0, lt=MAX_SAMPLES)]
    finish: Literal["stop", "length"]
    reason: Word
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    sampling: Word
    template: Word
    generator: Word
    made: Word = ""

    def to_json(self) -> bytes:
        """Compact JSON."""
        return self.model_dump_json().encode()
