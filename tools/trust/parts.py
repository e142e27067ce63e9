"""What a signature of a whole cache says about a part of it.

A part has a manifest of its own, which nobody signed. So the whole's signed manifest and its signatures travel with it,
in ``signed/``, laid out as in the cache they are of. Shards that were taken whole have files whose sha256 are in it.
Shards of which some samples were taken are new files: of these a signature says nothing, and that is said.
"""

from schemas.errors import CorruptCacheError
from schemas.manifest import Manifest, ShardEntry
from schemas.signature import SIGNATURES, signature_file
from teacher_cache.shards.marks import read_manifest, read_manifest_text
from teacher_cache.shards.storage import MANIFEST, MAX_JSON_BYTES, Storage
from teacher_cache.shards.table import listed, table_file

SIGNED = "signed"  # the folder
MAX_SIGNATURES = 1000
MAX_FILE_BYTES = 1 << 16  # of a signature
OWNER = "signed-"  # of temporary files


def signed_whole(storage: Storage) -> Storage:
    """Where the whole's manifest and signatures are, if they are there, of the part at ``storage``."""
    return Storage(f"{storage.url.rstrip('/')}/{SIGNED}")


def carry_signatures(source: Storage, manifest: Manifest, target: Storage) -> int:
    """Put a complete cache's manifest and signatures, if it is signed, beside a part of it; how many bytes these are.

    Of a source that is a part itself, and that nobody signed, what it came with is passed on. ``manifest``: its own.
    """
    if not _signatures(source):
        source = signed_whole(source)
        if not source.exists(MANIFEST):
            return 0
        manifest = read_manifest(source)
    files = {MANIFEST: read_manifest_text(source)}
    if manifest.shard_table is not None:
        name = table_file(manifest.shard_table)
        files[name] = source.read(name, min(manifest.shard_table.bytes, MAX_JSON_BYTES))
    files |= {name: source.read(name, MAX_FILE_BYTES) for name in _signatures(source)}
    whole = signed_whole(target)
    for name, data in files.items():
        whole.put(name, data, OWNER)
    return sum(map(len, files.values()))


def _signatures(storage: Storage) -> list[str]:
    """Names of the signatures' files; nothing else of a large cache is listed."""
    folder, _, _ = signature_file("").partition("/")
    names = [f"{folder}/{name}" for name in Storage(f"{storage.url.rstrip('/')}/{folder}").names()]
    names = [name for name in names if SIGNATURES.fullmatch(name)]
    if len(names) > MAX_SIGNATURES:
        raise CorruptCacheError(f"{storage.url}: {len(names)} signatures, at most {MAX_SIGNATURES} are allowed")
    return names


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
        raise CorruptCacheError(f"{where}: {', '.join(wrong[:5])}: not as in the signed manifest of {whole.sha256}")
    entries = {entry.name: entry for entry in listed(signed_whole(storage), whole).shards}
    shards = listed(storage, manifest).shards
    unproven = [entry.name for entry in shards if not _is_of(entry, entries.get(entry.name))]
    if unproven:
        raise CorruptCacheError(
            f"{where}: {len(unproven)} of {len(shards)} shards, the first {unproven[0]}, are not files of the signed "
            f"cache {whole.sha256}: samples were chosen from them, or they were changed, and the signature cannot "
            "prove either; pull whole shards (--signals, --shards) to have files that it covers"
        )


def _is_of(entry: ShardEntry, whole: ShardEntry | None) -> bool:
    if whole is None or (entry.index, entry.samples, entry.tokens) != (whole.index, whole.samples, whole.tokens):
        return False
    return all(whole.files.get(signal) == file for signal, file in entry.files.items())
