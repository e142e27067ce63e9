"""What a signature of a whole cache says about a part of it.

A part has a manifest of its own, which nobody signed. So the whole's signed manifest and its signatures travel with it,
in ``signed/``, laid out as in the cache they are of. Shards that were taken whole have files whose sha256 are in it.
Shards of which some samples were taken are new files: of these a signature says nothing, and that is said.
"""

from schemas.errors import CorruptCacheError
from schemas.manifest import Manifest, ShardEntry
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.shards.table import with_lists

SIGNED = "signed"  # the folder


def signed_whole(storage: Storage) -> Storage:
    """Where the whole's manifest and signatures are, if they are there, of the part at ``storage``."""
    return Storage(f"{storage.url.rstrip('/')}/{SIGNED}")


def check_part(storage: Storage, manifest: Manifest, whole: Manifest) -> None:
    """Raise CorruptCacheError unless every file of the part ``manifest`` is one that ``whole`` lists.

    The files themselves are compared with the part's manifest, as those of any cache.
    """
    where = storage.where(MANIFEST)
    same = ("format_version", "teacher", "tokenizer", "corpus", "codec", "provenance", "tokens_per_shard")
    wrong = [name for name in same if getattr(manifest, name) != getattr(whole, name)]
    for signal in manifest.capture.signals:
        if getattr(manifest.capture, signal) != getattr(whole.capture, signal):
            wrong.append(f"capture.{signal}")
    if manifest.head not in (None, whole.head):
        wrong.append("head")
    wrong += [f"table {digest}" for digest, file in manifest.tables.items() if whole.tables.get(digest) != file]
    if wrong:
        raise CorruptCacheError(f"{where}: {', '.join(wrong[:5])}: not as in the signed manifest of {whole.digest()}")
    entries = {entry.name: entry for entry in with_lists(signed_whole(storage), whole).shards}
    shards = with_lists(storage, manifest).shards
    unproven = [entry.name for entry in shards if not _is_of(entry, entries.get(entry.name))]
    if unproven:
        raise CorruptCacheError(
            f"{where}: {len(unproven)} of {len(shards)} shards, the first {unproven[0]}, are not files of the signed "
            f"cache {whole.digest()}: samples were chosen from them, or they were changed, and the signature cannot "
            "prove either; pull whole shards (--signals, --shards) to have files that it covers"
        )


def _is_of(entry: ShardEntry, whole: ShardEntry | None) -> bool:
    if whole is None or (entry.index, entry.samples, entry.tokens) != (whole.index, whole.samples, whole.tokens):
        return False
    return all(whole.files.get(signal) == file for signal, file in entry.files.items())
