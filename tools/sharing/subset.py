"""``cache-tools subset``, ``split`` and selective ``pull``: a part of a cache as a cache of its own.

Fully selected shards are copied unchanged; of others, the selected samples are fetched by range requests and written to
shards of the same name. Rerunning resumes a killed process: shards already written are kept.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

from schemas.derivation import Derivation, Selection
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest, MemberIndex, ShardEntry, ShardIndex
from teacher_cache.ahead import map_ahead
from teacher_cache.shards.marks import (
    assemble,
    files_beside_shards,
    mark_name,
    mark_text,
    read_index,
    read_mark,
    shard_entry,
    write_manifest,
)
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import MANIFEST, Storage, file_entry
from tools.checked_parts import Advance, Progress, unseen
from tools.making.derived import copy_samples, derived_manifest, source_of
from tools.sharing.copy_files import OWNER, PARALLEL, bytes_of, copy_files
from tools.sharing.push import (
    Check,
    Report,
    another_cache,
    check_tars,
    checked_source,
    marks_of,
    missing_of,
    tars_of,
    unchecked,
)
from tools.sharing.selecting import ShardPart, canonical, chosen_parts, layers_of, settings_of
from tools.sharing.target import Target, opened_target
from tools.trust.carry import carry_signatures

Item = TypeVar("Item")
_PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Subset:
    """A selected part of a cache, not written yet."""

    source: Storage
    manifest: Manifest
    derivation: Derivation
    parts: list[ShardPart]
    bound: bool = False  # whether a digest or signature is required, which all data must be verified against

    @property
    def identity(self) -> str:
        """Fingerprint of this part of this cache, 64 hex digits."""
        return hashlib.sha256(self.derivation.model_dump_json().encode()).hexdigest()


def open_source(
    url: str, digest: str | None = None, check: Check = unchecked, whole: bool = False
) -> tuple[Storage, Manifest]:
    """Open a cache to select from; its manifest has all lists, of an incomplete cache those of the committed shards.

    Arguments and errors are those of ``checked_source``.
    """
    source, _, manifest = checked_source(url, digest, check, whole)
    return source, with_lists(source, manifest if manifest.complete else assemble(source, manifest))


def choose(
    source: Storage,
    manifest: Manifest,
    selection: Selection,
    parallel: int = PARALLEL,
    advance: Advance = unseen,
    bound: bool = False,
) -> Subset:
    """Select a part of a cache, without writing anything. Raises UserError when it is empty."""
    selection = canonical(selection, manifest, source.url)
    parts = chosen_parts(source, manifest, selection, parallel, advance)
    derivation = Derivation(action="subset", sources=[source_of(manifest)], selection=selection)
    return Subset(source, manifest, derivation, parts, bound)


def write_subset(
    subset: Subset, target_url: str, parallel: int = PARALLEL, dry_run: bool = False, advance: Advance = unseen
) -> Report:
    """Write a part of a cache; raises as ``copy_cache``.

    The report holds the new manifest's sha256, or "" if it is not known yet (dry run).
    """
    source, selection = subset.source, subset.derivation.selection
    assert selection is not None
    settings = settings_of(selection, subset.manifest)
    whole = [part.entry for part in subset.parts if part.rows is None]
    partial = [part for part in subset.parts if part.rows is not None]
    with opened_target(target_url, subset.identity, dry_run) as target:
        if target.manifest is not None and target.manifest.derived != subset.derivation:
            raise another_cache(
                target, f"and it is not this part of the cache {subset.manifest.digest()} of {source.url}"
            )
        report = Report(source.url, target_url, "" if target.manifest is None else target.manifest.sha256, dry_run)
        beside = files_beside_shards(subset.manifest.model_copy(update={**settings, "shard_table": None}))
        objects = missing_of(target, [*beside, *tars_of(whole)], parallel, report)
        marks = missing_of(target, marks_of(whole), parallel, report)
        kept = list(map_ahead(lambda part: _kept(subset, target, part), partial, parallel))
        for part, entry in zip(partial, kept, strict=True):
            for signal, size in part.sizes.items():
                report.add(signal, size, sent=entry is None)
        if dry_run:
            return report
        target.begin()
        to_write = [part for part, entry in zip(partial, kept, strict=True) if entry is None]
        progress = Progress(bytes_of(objects) + bytes_of(marks) + sum(part.bytes for part in to_write), advance)
        copy_files(source, target.storage, objects, parallel, progress)
        written = list(map_ahead(lambda part: _write(subset, target, part, progress), to_write, parallel))
        copy_files(source, target.storage, marks, parallel, progress)
        check_tars(source, target.storage, subset.manifest, whole)
        report.sent(marks_of(written))
        report.there(marks_of(entry for entry in kept if entry is not None))

        by_name = {entry.name: entry for entry in (*whole, *(entry for entry in kept if entry is not None), *written)}
        shards = [by_name[part.entry.name] for part in subset.parts]
        manifest = derived_manifest(subset.manifest, shards, subset.derivation, rewritten=bool(partial), **settings)
        if target.manifest is None:
            target.confirm()
            manifest = write_manifest(target.storage, manifest, OWNER)
            report.manifest_sha256 = manifest.digest()
        elif with_lists(target.storage, target.manifest).shards != shards:
            raise UserError(
                f"{target.storage.where(MANIFEST)}: the missing shards were written, but differ from this manifest, "
                "which another version wrote; remove the cache and run again"
            )
        report.add("manifest", len(manifest.to_json().encode()), sent=target.manifest is None)
        if carried := carry_signatures(source, subset.manifest, target.storage):
            report.add("signatures", carried, sent=True)
        target.finish()
    return report


def _write(subset: Subset, target: Target, part: ShardPart, progress: Progress) -> ShardEntry:
    """Write a shard with the selected samples of a source shard."""
    assert part.rows is not None
    index = read_index(subset.source, subset.manifest, part.entry)
    signals = tuple(part.entry.files)
    if subset.bound and not subset.source.is_local and any(index.signals[s].digests is None for s in signals):
        raise UserError(
            f"{subset.source.where(mark_name(index.name))}: format 1.0 has no digests of single samples, which "
            "the required digest or signature needs; pull whole shards (--signals, --shards), then select samples "
            "with `cache-tools subset`"
        )
    entry = copy_samples(subset.source, target.storage, index, part.rows.tolist(), signals, part.entry.name, OWNER)
    progress.add(part.bytes)
    return entry


def _kept(subset: Subset, target: Target, part: ShardPart) -> ShardEntry | None:
    """The shard already written for a part, if it has the right samples and intact files; else None."""
    name = part.entry.name
    if mark_name(name) not in target.sizes:
        return None
    try:
        found = read_mark(target.storage, name)
    except CorruptCacheError:
        return None
    if not _is_part(found, read_index(subset.source, subset.manifest, part.entry), part):
        return None
    entry = shard_entry(found, file_entry(mark_text(found)))
    return None if target.missing([*tars_of([entry]), *marks_of([entry])], parallel=1) else entry


def _is_part(found: ShardIndex, index: ShardIndex, part: ShardPart) -> bool:
    """Whether ``found`` has exactly the part's samples of ``index``, with the same payloads of its signals."""
    assert part.rows is not None
    rows, signals = part.rows.tolist(), part.entry.files

    def chosen(values: list[Item]) -> list[Item]:
        return [values[row] for row in rows]

    return (
        found.table == index.table
        and found.keys == chosen(index.keys)
        and found.num_tokens == chosen(index.num_tokens)
        and found.layers == (None if index.layers is None else chosen(index.layers))
        and set(found.signals) == set(signals)
        and all(_same_payloads(found.signals[signal], index.signals[signal], rows) for signal in signals)
    )


def _same_payloads(found: MemberIndex, member: MemberIndex, rows: list[int]) -> bool:
    return (
        found.sizes == [member.sizes[row] for row in rows]
        and found.checksums == [member.checksums[row] for row in rows]
        and (member.digests is None or found.digests == b"".join(map(member.digest, rows)))
    )


def by_layer(source: Storage, manifest: Manifest, parallel: int = PARALLEL) -> dict[str, Selection]:
    """One selection per layer of the data mix, by its name. Raises UserError when the indexes list no layers."""
    return {layer: Selection(layers=[layer]) for layer in layers_of(source, manifest, parallel)}


def by_share(shares: Mapping[str, Decimal]) -> dict[str, Selection]:
    """Disjoint selections of these shares of the samples (0 to 1). Raises UserError when they sum to more than 1."""
    parts, start = {}, Decimal(0)
    for name, share in shares.items():
        parts[name] = Selection(share=(float(start), float(min(start + share, Decimal(1)))))
        start += share
    if start > 1:
        raise UserError(f"the parts sum to {100 * start:f} %, wanted at most 100 %")
    return parts


def split(
    source: Storage,
    manifest: Manifest,
    parts: Mapping[str, Selection],
    out: str,
    parallel: int = PARALLEL,
    dry_run: bool = False,
    advance: Advance = unseen,
) -> dict[str, Report]:
    """Write each part to ``OUT/{its name}``, after all of them have been selected. Raises UserError."""
    for name in parts:
        if not _PART_NAME.fullmatch(name):
            raise UserError(
                f"{name!r}: not usable as the name of a part's folder; wanted at most 100 letters, digits, '.', '_' "
                "and '-', the first a letter or digit"
            )
    subsets = {name: choose(source, manifest, selection, parallel) for name, selection in parts.items()}
    return {
        name: write_subset(subset, f"{out.rstrip('/')}/{name}", parallel, dry_run, advance)
        for name, subset in subsets.items()
    }
