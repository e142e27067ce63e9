"""``cache-tools push`` and ``pull``: copy a whole cache between storages, unchanged.

Data is written first, then the manifest, then signatures, so that a reader of the target finds the whole cache or none.
Rerunning the same command resumes a killed transfer.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.errors import UserError
from schemas.manifest import Manifest, ShardEntry
from teacher_cache.shards.marks import (
    files_beside_shards,
    mark_name,
    parse_manifest,
    read_index,
    read_manifest,
    read_manifest_text,
    tar_name,
)
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import HEAD, MANIFEST, VOCABULARY, Storage
from teacher_cache.shards.unlisted import file_names
from teacher_cache.trust.required import check_digest
from teacher_cache.trust.signed_parts import signed_whole
from tools.checked_parts import Advance, Progress, unseen
from tools.checking.tars import check_headers
from tools.sharing.copy_files import OWNER, PARALLEL, File, bytes_of, copy_files
from tools.sharing.target import Target, opened_target
from tools.trust.carry import carry_signatures, read_signatures

Check = Callable[[Storage, Manifest], None]


def unchecked(source: Storage, manifest: Manifest) -> None:
    """No check of signatures."""


KINDS = {HEAD: "head", VOCABULARY: "vocabulary"}


@dataclass
class Report:
    """Files and bytes of a transfer, sent and already at the target, by kind (signal, ``index``, …)."""

    source: str
    target: str
    manifest_sha256: str
    dry_run: bool = False
    sent_files: Counter[str] = field(default_factory=Counter)
    sent_bytes: Counter[str] = field(default_factory=Counter)
    there_files: Counter[str] = field(default_factory=Counter)
    there_bytes: Counter[str] = field(default_factory=Counter)

    def sent(self, files: Iterable[File]) -> None:
        """Count files that are sent."""
        for name, entry in files:
            self.add(kind_of(name), entry.bytes, sent=True)

    def there(self, files: Iterable[File]) -> None:
        """Count files that were already at the target."""
        for name, entry in files:
            self.add(kind_of(name), entry.bytes, sent=False)

    def add(self, kind: str, n_bytes: int, sent: bool) -> None:
        """Count one file."""
        files, sizes = (self.sent_files, self.sent_bytes) if sent else (self.there_files, self.there_bytes)
        files[kind] += 1
        sizes[kind] += n_bytes

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        kinds = sorted({*self.sent_files, *self.there_files})
        return {
            "source": self.source,
            "target": self.target,
            "manifest_sha256": self.manifest_sha256,
            "dry_run": self.dry_run,
            "sent": {"files": self.sent_files.total(), "bytes": self.sent_bytes.total()},
            "skipped": {"files": self.there_files.total(), "bytes": self.there_bytes.total()},
            "by_kind": {kind: {"sent": self.sent_bytes[kind], "skipped": self.there_bytes[kind]} for kind in kinds},
        }


def kind_of(name: str) -> str:
    """The kind of a cache's file: its signal, ``index``, ``tables``, ``head`` or ``vocabulary``."""
    if name.endswith(".tar"):
        return name.split(".")[1]
    return "tables" if name.startswith("tables/") else KINDS.get(name, "index")


def tars_of(shards: Iterable[ShardEntry]) -> list[File]:
    """The shards' tars."""
    return [(tar_name(shard.name, signal), entry) for shard in shards for signal, entry in shard.files.items()]


def marks_of(shards: Iterable[ShardEntry]) -> list[File]:
    """The shards' indexes, which are their commit marks."""
    return [(mark_name(shard.name), shard.index) for shard in shards]


def checked_source(
    url: str, digest: str | None = None, check: Check = unchecked, whole: bool = True
) -> tuple[Storage, bytes, Manifest]:
    """Open a cache to copy: its storage, the manifest's bytes, and the manifest; nothing else is read.

    Raises UserError when the manifest's sha256 is not ``digest``, or ``whole`` is set and the cache is not complete.
    """
    source = Storage(url)
    where, text = source.where(MANIFEST), read_manifest_text(source)
    manifest = parse_manifest(text, where)
    check_digest(manifest, digest, where)
    check(source, manifest)
    if whole and not manifest.complete:
        raise UserError(
            f"{where}: the cache is not complete; finish it with `teacher-cache run`, or extract the committed shards "
            f"with `cache-tools subset {url} FOLDER`"
        )
    return source, text, manifest


def copy_cache(
    source_url: str,
    target_url: str,
    parallel: int = PARALLEL,
    dry_run: bool = False,
    digest: str | None = None,
    check: Check = unchecked,
    advance: Advance = unseen,
) -> Report:
    """Copy a complete cache from one folder or object store to another.

    ``digest``: required sha256 of the manifest. ``check`` is called before anything is fetched, and may raise.
    ``advance(bytes done, bytes in all)`` is called from several threads, one at a time.

    Raises:
        UserError: no complete cache at the source, another cache at the target, or a storage error.
        CorruptCacheError: a source file differs from the manifest, and does not appear at the target; or a tar differs
            from its index, and the manifest does not appear at the target.
    """
    source, text, manifest = checked_source(source_url, digest, check)
    with opened_target(target_url, manifest.sha256, dry_run) as target:
        if target.manifest is not None and target.manifest.sha256 != manifest.sha256:
            raise another_cache(target, f"that of {source_url} is {manifest.sha256}")
        shards = with_lists(source, manifest).shards
        objects, marks = [*files_beside_shards(manifest), *tars_of(shards)], marks_of(shards)
        report = Report(source_url, target_url, manifest.sha256, dry_run)
        missing = missing_of(target, [*objects, *marks], parallel, report)
        signatures = new_signatures(source, target)
        for content in signatures.values():
            report.add("signatures", len(content), sent=True)
        report.add("manifest", len(text), sent=target.manifest is None)
        if dry_run:
            return report
        target.begin()
        progress = Progress(bytes_of(missing), advance)
        last = {name for name, _ in marks}
        copy_files(source, target.storage, [file for file in missing if file[0] not in last], parallel, progress)
        copy_files(source, target.storage, [file for file in missing if file[0] in last], parallel, progress)
        check_tars(source, target.storage, manifest, shards)
        if target.manifest is None:
            target.confirm()
            target.storage.put(MANIFEST, text, OWNER)
        for name, content in signatures.items():
            target.storage.put(name, content, OWNER)
        if signed_whole(source).exists(MANIFEST) and manifest.derived is not None:
            carry_signatures(signed_whole(source), read_manifest(signed_whole(source)), target.storage)
        target.finish()
    return report


def check_tars(source: Storage, target: Storage, manifest: Manifest, shards: Iterable[ShardEntry]) -> None:
    """Check that tars copied to a local folder have exactly the members that their indexes list.

    Otherwise unpacking them could write anywhere. Raises CorruptCacheError naming the source's file.
    """
    if not target.is_local:
        return
    for shard in shards:
        index = read_index(target, manifest, shard)
        for signal in shard.files:
            name = tar_name(shard.name, signal)
            path = target.local_path(name)
            check_headers(path, source.where(name), signal, index.keys, index.signals[signal])


def missing_of(target: Target, files: Sequence[File], parallel: int, report: Report) -> list[File]:
    """The files that must be sent; these and the others are counted in ``report``."""
    missing = target.missing(files, parallel)
    names = {name for name, _ in missing}
    report.sent(missing)
    report.there(file for file in files if file[0] not in names)
    return missing


def another_cache(target: Target, ours: str) -> UserError:
    """The error for a target that holds another cache."""
    assert target.manifest is not None
    return UserError(
        f"{target.storage.where(MANIFEST)}: another cache is there: the sha256 of its manifest is "
        f"{target.manifest.sha256}, {ours}; choose another target, or remove it"
    )


def new_signatures(source: Storage, target: Target) -> dict[str, bytes]:
    """The source's signatures that the target lacks or has differently: file name → bytes. Raises as
    ``read_signatures``.
    """
    return {
        name: data
        for name, data in read_signatures(source, file_names(source)).items()
        if target.sizes.get(name) != len(data) or target.storage.read(name, len(data)) != data
    }
