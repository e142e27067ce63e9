"""The catalogue of a folder of caches, ``catalog.json``: each one's content, according to its manifest at listing time.

A catalogue is a convenience and not trusted: its author can write anything. Pulled caches are checked against their
digest.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from schemas.manifest import Count, TokenizerInfo
from schemas.signal_names import CapturedSignal, Signal
from schemas.signature import PublicKey
from schemas.strict import Sha256, Strict

CATALOG_VERSION = 1
MAX_LINE = 200
MAX_NOTES = 500
MAX_CACHES = 5000
MAX_PROBLEMS = 1000
MAX_SIGNATURES = 20

PATH_PART = r"[A-Za-z0-9_][A-Za-z0-9._=+@-]{0,99}"
CachePath = Annotated[
    str,
    Field(
        pattern=rf"^{PATH_PART}(/{PATH_PART}){{0,7}}$",
        max_length=400,
        description="Below the folder of the catalogue.",
    ),
]
_SHOWN = r"^[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]*$"
Line = Annotated[str, Field(max_length=MAX_LINE, pattern=_SHOWN)]
Notes = Annotated[str, Field(max_length=MAX_NOTES, pattern=_SHOWN)]


class CatalogTeacher(Strict):
    """The model whose signals a cache holds."""

    name: Line
    revision: Line | None
    architecture: Line
    dtype: Line
    fingerprint: Sha256


class CatalogSignature(Strict):
    """A signature that was valid when the catalogue was written; the signer's name is self-declared."""

    public_key: PublicKey
    signer: Line
    signed_at: AwareDatetime


class CatalogEntry(Strict):
    """One cache."""

    path: CachePath
    manifest_sha256: Sha256
    format_version: Annotated[int, Field(ge=1)]
    complete: bool = Field(description="Whether all planned shards are there; if not, the digest will change.")
    teacher: CatalogTeacher
    tokenizer: TokenizerInfo
    samples: Count
    tokens: Count
    bytes: Count = Field(description="Of all files that the manifest lists.")
    bytes_by_signal: dict[Signal, Count]
    capture: dict[CapturedSignal, Line] = Field(description="What is stored of each signal, in words.")
    licence: Line
    owner: Line
    notes: Notes = Field(description="Cut to so many characters, on one line.")
    written_at: AwareDatetime | None = Field(
        description="When manifest.json was last written or uploaded, by the clock of the store; null where it does "
        "not say."
    )
    derived: Literal["subset", "merge", "repack", "import"] | None = Field(description="Whether made of other caches.")
    signatures: list[CatalogSignature] = Field(max_length=MAX_SIGNATURES)


class CatalogProblem(Strict):
    """A place below the folder that looks like a cache but cannot be listed."""

    path: CachePath
    reason: Annotated[str, Field(max_length=MAX_NOTES, pattern=_SHOWN)]


class Catalog(Strict):
    """``catalog.json``."""

    catalog_version: Annotated[int, Field(ge=1)] = CATALOG_VERSION
    written_at: AwareDatetime
    caches: list[CatalogEntry] = Field(max_length=MAX_CACHES)
    problems: list[CatalogProblem] = Field(max_length=MAX_PROBLEMS)
    left_out: Count = Field(description="Folders that were not looked into, because of the characters in their names.")
