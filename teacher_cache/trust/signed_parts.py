"""Extend the signature of a whole cache to a part of it.

A part has its own, unsigned manifest. So the whole cache's signed manifest and signatures travel with it, in
``signed/``, in their original layout. Shards copied whole have files whose sha256 the signed manifest lists. Shards
from which samples were selected are new files: no signature covers them, which is reported.
"""

from schemas.errors import CorruptCacheError
from schemas.manifest import Manifest, ShardEntry
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import MANIFEST, Storage

SIGNED = "signed"  # the folder


def signed_whole(storage: Storage) -> Storage:
    """Where the part at ``storage`` keeps the whole cache's manifest and signatures, if it has them."""
    return Storage(f"{storage.url.rstrip('/')}/{SIGNED}")


def check_part(storage: Storage, manifest: Manifest, whole: Manifest) -> None:
    """Raise CorruptCacheError unless ``whole`` lists every file of the part's ``manifest``.

    The files themselves are checked against the part's manifest, like those of any cache.
    """
    where = storage.where(MANIFEST)
    same = ("format_version", "teacher", "tokenizer", "corpus", "codec", "provenance", "tokens_per_shard")
    wrong = [name for name in same if getattr(manifest, name) != getattr(whole, name)]
    for signal in manifest.capture.signals:
        if getattr(manifest.capture, signal) != getattr(whole.capture, signal):
            wrong.append(f"capture.{signal}")
    wrong += [name for name in ("head", "vocabulary") if getattr(manifest, name) not in (None, getattr(whole, name))]
    wrong += [f"table {digest}" for digest, file in manifest.tables.items() if whole.tables.get(digest) != file]
    if wrong:
        raise CorruptCacheError(f"{where}: {', '.join(wrong[:5])}: differs from the signed manifest {whole.digest()}")
    entries = {entry.name: entry for entry in with_lists(signed_whole(storage), whole).shards}
    shards = with_lists(storage, manifest).shards
    unproven = [entry.name for entry in shards if not _is_of(entry, entries.get(entry.name))]
    if unproven:
        raise CorruptCacheError(
            f"{where}: {len(unproven)} of {len(shards)} shards, the first {unproven[0]}, are not files of the signed "
            f"cache {whole.digest()}: samples were selected from them, or they were modified, and the signature cannot "
            "tell which; pull whole shards (--signals, --shards) to get files that it covers"
        )


def _is_of(entry: ShardEntry, whole: ShardEntry | None) -> bool:
    if whole is None or (entry.index, entry.samples, entry.tokens) != (whole.index, whole.samples, whole.tokens):
        return False
    return all(whole.files.get(signal) == file for signal, file in entry.files.items())
