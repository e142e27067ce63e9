"""A signature of a cache: it vouches for a manifest and, through the checksums in it, for every file."""

import re
from typing import Annotated

from pydantic import AwareDatetime, Field

from schemas.strict import Sha256, Strict

PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Ed25519 public key, 32 bytes in hex.")]


class Statement(Strict):
    """What is signed."""

    manifest_sha256: Sha256
    signer: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$", description="Name, as claimed.")
    signed_at: AwareDatetime

    def message(self) -> bytes:
        """The signed bytes: a line that states the purpose, and the statement as JSON."""
        return b"signature of a cache manifest, version 1\n" + self.model_dump_json().encode()


class Signature(Strict):
    """``signatures/{public_key}.json``."""

    statement: Statement
    public_key: PublicKey
    signature: str = Field(pattern=r"^[0-9a-f]{128}$", description="Ed25519 signature of the statement, in hex.")

    def content(self) -> bytes:
        """The bytes of its file."""
        return self.model_dump_json().encode() + b"\n"


SIGNATURES = re.compile(r"signatures/[0-9a-f]{64}\.json")  # names of their files


def signature_file(public_key: str) -> str:
    """File name of a signature."""
    return f"signatures/{public_key}.json"
