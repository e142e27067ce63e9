"""``cache-tools push`` to the Hugging Face Hub: a cache as a data set with a card, complete with the last commit."""

from typing import TYPE_CHECKING

from schemas.errors import UserError
from teacher_cache.ahead import map_ahead
from teacher_cache.hub import HubUpload, repository_of
from teacher_cache.shards.marks import files_beside_shards, garbage
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import MANIFEST, file_entry
from teacher_cache.shards.unlisted import file_names
from teacher_cache.text import in_header
from tools.checked_parts import Advance, Progress, unseen
from tools.finding.card import cache_card
from tools.sharing.copy_files import PARALLEL, File, bytes_of
from tools.sharing.push import Report, checked_source, marks_of, tars_of
from tools.trust.carry import SIGNATURES, read_signatures
from tools.trust.signatures import valid_signatures

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

CARD = "README.md"  # the Hub's name for it
NO_VIEWER = "viewer: false"  # of tables, which cannot show tars of compressed signals
SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


def push_to_hub(
    source_url: str,
    url: str,
    private: bool = True,
    replace: bool = False,
    parallel: int = PARALLEL,
    dry_run: bool = False,
    advance: Advance = unseen,
) -> Report:
    """Upload a complete cache from a folder; every file is compared with the manifest before.

    private: whether others may not see the repository, if it is new. replace: another cache there, which stays what it
    was under the revisions before. Raises UserError, or CorruptCacheError for a file that differs from the manifest;
    nothing is committed then.
    """
    repository = repository_of(url, "dataset")
    source, text, manifest = checked_source(source_url)
    if not source.is_local:
        raise UserError(f"{source_url}: uploads to the Hub start from a folder; `cache-tools pull` it first")
    upload = HubUpload(repository)
    present = upload.present()
    listed = with_lists(source, manifest)
    files: list[File] = [*files_beside_shards(manifest), *tars_of(listed.shards), *marks_of(listed.shards)]
    last: dict[str, bytes] = {MANIFEST: text, **read_signatures(source, file_names(source))}
    card = cache_card(listed, url, valid_signatures(source, listed))
    last[CARD] = in_header(card, NO_VIEWER, f"size_categories: [{size_category(manifest.totals.samples)}]").encode()
    changed = {
        name: content
        for name, content in last.items()
        if name not in present or not present[name].has(len(content), file_entry(content).sha256, content)
    }
    if MANIFEST in changed and MANIFEST in present and not replace:
        raise UserError(
            f"{url}: another cache is there; choose another repository or /FOLDER, or add --replace, and its revisions "
            "before stay what they were"
        )
    report = Report(source_url, url, manifest.sha256, dry_run)
    there = {
        name
        for name, entry in files
        if name in present and present[name].has(entry.bytes, entry.sha256, source.local_path(name))
    }
    missing = [file for file in files if file[0] not in there]
    report.sent(missing)
    report.there(file for file in files if file[0] in there)
    for name in last:
        kind = {MANIFEST: "manifest", CARD: "card"}.get(name, "signatures")
        report.add(kind, len(last[name]), sent=name in changed)
    removed = [
        *garbage(present, listed),
        *(name for name in present if SIGNATURES.fullmatch(name) and name not in last),
    ]
    if dry_run or not (missing or changed or removed):
        return report
    progress = Progress(bytes_of(missing), advance)

    def checked(file: File) -> "CommitOperationAdd":
        name, entry = file
        found = upload.file(name, source.local_path(name), entry.sha256)
        progress.add(entry.bytes)
        return found

    checked_files = [*map_ahead(checked, missing, parallel)]
    upload.create(private)
    upload.commit(checked_files, changed, removed, f"Teacher cache {manifest.sha256[:12]}", present)
    return report


def size_category(samples: int) -> str:
    """The Hub's category of a data set's size."""
    above = max(len(str(samples)) - 3, 0)  # number of SIZES that are at most this
    if above == 0:
        return f"n<{SIZES[0]}"
    return f"n>{SIZES[-1]}" if above >= len(SIZES) else f"{SIZES[above - 1]}<n<{SIZES[above]}"
