"""What a user asks of a cache before anything of it is used."""

from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import MANIFEST, Storage


@dataclass(frozen=True)
class Required:
    """A digest that the cache must have, and who must have signed it."""

    digest: str | None = None  # of the manifest, hex
    signed_by: tuple[str, ...] = ()  # keys as ``load_public_key`` takes them: all must have signed

    def __bool__(self) -> bool:
        return self.digest is not None or bool(self.signed_by)


NOTHING = Required()


def check_digest(manifest: Manifest, digest: str | None, where: str) -> None:
    """Raise UserError unless ``digest`` is that of the manifest, or None."""
    if digest is not None and manifest.digest() != digest.lower():
        raise UserError(
            f"{where}: its sha256 is {manifest.digest()}, wanted {digest}: it is another cache, or another state of it"
        )


def required_manifest(storage: Storage, required: Required, trusted_keys: Path | None = None) -> Manifest:
    """The manifest of a cache that is as required: of an incomplete one, what its file lists, and no later shard.

    ``trusted_keys``: the file with trusted keys; None: the default one. Raises UserError for another digest or a key
    that is not known, CorruptCacheError for a signature that is missing or wrong.
    """
    manifest = read_manifest(storage)
    check_digest(manifest, required.digest, storage.where(MANIFEST))
    if required.signed_by:
        from teacher_cache.trust.check_signatures import check_trust  # cryptography, for those who ask for it

        check_trust(storage, manifest, required.signed_by, trusted_keys)
    return manifest
