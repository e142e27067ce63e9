"""What a user requires of a cache before it is used: a digest, signatures."""

from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import MANIFEST, Storage


@dataclass(frozen=True)
class Required:
    """The digest that a cache must have, and the keys that must all have signed it."""

    digest: str | None = None  # of the manifest, hex
    signed_by: tuple[str, ...] = ()  # keys in any form that ``load_public_key`` accepts

    def __bool__(self) -> bool:
        return self.digest is not None or bool(self.signed_by)


NOTHING = Required()


def check_digest(manifest: Manifest, digest: str | None, where: str) -> None:
    """Raise UserError unless ``digest`` is None or the manifest's."""
    if digest is not None and manifest.digest() != digest.lower():
        raise UserError(
            f"{where}: its sha256 is {manifest.digest()}, wanted {digest}: another cache, or another version of it"
        )


def required_manifest(storage: Storage, required: Required, trusted_keys: Path | None = None) -> Manifest:
    """Read the manifest and check it against ``required``. Shards committed after the manifest file are not included.

    ``trusted_keys``: the file with trusted keys; None: the default one. Raises UserError for another digest or an
    unknown key, CorruptCacheError for a missing or invalid signature.
    """
    manifest = read_manifest(storage)
    check_digest(manifest, required.digest, storage.where(MANIFEST))
    if required.signed_by:
        from teacher_cache.trust.check_signatures import check_trust  # imports cryptography only if needed

        check_trust(storage, manifest, required.signed_by, trusted_keys)
    return manifest
