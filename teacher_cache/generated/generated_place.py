"""The place of generated replies: file names, manifest, commit marks, and the replies in order."""

from collections.abc import Iterator
from contextlib import closing

from schemas.errors import ConflictError, CorruptCacheError, UserError
from schemas.generated_manifest import GENERATED_VERSION, GeneratedManifest, GeneratedShard, PromptUnit
from schemas.load import parse_cache_file
from teacher_cache.ahead import map_ahead
from teacher_cache.generated.reply_files import Prompt, Reply, read_rows
from teacher_cache.shards.marks import mark_name
from teacher_cache.shards.storage import Storage

GENERATED = "generated.json"
MAX_BYTES = 1 << 26  # of the manifest: a unit takes 600
MAX_MARK_BYTES = 1 << 16


def prompts_name(unit: str) -> str:
    """File name of a unit's prompts."""
    return f"{unit}.prompts.zst"


def replies_name(unit: str) -> str:
    """File name of a unit's replies."""
    return f"{unit}.replies.zst"


def read_generated(storage: Storage) -> GeneratedManifest:
    """Read the manifest. Raises UserError if there is none, or of another version; CorruptCacheError if invalid."""
    where = storage.where(GENERATED)
    if not storage.exists(GENERATED):
        raise UserError(f"{where}: not found; pass a folder or URL that teacher-cache generate has written")
    manifest = parse_cache_file(GeneratedManifest, storage.read(GENERATED, MAX_BYTES), where)
    if manifest.generated_version > GENERATED_VERSION:
        raise UserError(f"{where}: version {manifest.generated_version} is newer than {GENERATED_VERSION}; upgrade")
    if manifest.generated_version < GENERATED_VERSION:
        raise UserError(
            f"{where}: version {manifest.generated_version}, but {GENERATED_VERSION} is read; generate the replies "
            "again, at another place"
        )
    manifest.check_seal(where)
    return manifest


def read_complete(storage: Storage, key: str) -> GeneratedManifest:
    """Read the manifest of complete replies. Raises UserError naming the setting ``key`` if some are missing."""
    manifest = read_generated(storage)
    if not manifest.complete:
        raise UserError(
            f"{key}: {storage.where(GENERATED)}: {len(manifest.shards)} of {len(manifest.units)} units are generated; "
            "run teacher-cache generate again until it is complete"
        )
    return manifest


def write_generated(storage: Storage, manifest: GeneratedManifest, owner: str = "") -> GeneratedManifest:
    """Write the manifest; returns it with its sha256."""
    storage.write(GENERATED, manifest.to_json().encode(), owner)
    return manifest.model_copy(update={"sha256": manifest.text_sha256()})


def committed_units(storage: Storage, manifest: GeneratedManifest) -> set[str]:
    """Names of the units that carry a commit mark."""
    present = set(storage.names())
    return {unit.name for unit in manifest.units if mark_name(unit.name) in present}


def read_unit_prompts(storage: Storage, unit: PromptUnit) -> list[Prompt]:
    """The prompts of a unit. Raises CorruptCacheError."""
    return read_rows(Prompt, storage, prompts_name(unit.name), unit.file, unit.prompts)


def commit_shard(storage: Storage, shard: GeneratedShard, owner: str) -> None:
    """Write the commit mark of a unit whose replies are in place. Raises ConflictError if they are not any more."""
    name = replies_name(shard.name)
    if (size := storage.size(name)) != shard.file.bytes:
        raise ConflictError(
            f"{storage.where(name)}: {size} bytes, but {shard.file.bytes} were written: another program has "
            "overwritten it; make sure that nothing else writes there, and run again"
        )
    storage.write(mark_name(shard.name), shard.model_dump_json().encode() + b"\n", owner)


def with_committed(storage: Storage, manifest: GeneratedManifest) -> GeneratedManifest:
    """The manifest with all shards committed so far. Raises CorruptCacheError if the replies of one are missing."""
    sizes = storage.sizes()
    known = {shard.name: shard for shard in manifest.shards}
    units = [unit for unit in manifest.units if mark_name(unit.name) in sizes]

    def read(unit: PromptUnit) -> GeneratedShard:
        mark = mark_name(unit.name)
        data = storage.read(mark, MAX_MARK_BYTES, sizes[mark])
        return parse_cache_file(GeneratedShard, data, storage.where(mark))

    shards = []
    with closing(map_ahead(read, (unit for unit in units if unit.name not in known))) as others:
        for unit in units:
            mark, name = mark_name(unit.name), replies_name(unit.name)
            shard = known[unit.name] if unit.name in known else next(others)
            if shard.name != unit.name or shard.replies != unit.replies or sizes.get(name) != shard.file.bytes:
                raise CorruptCacheError(
                    f"{storage.where(name)}: missing, or not what {mark} says; restore it, or delete "
                    f"{storage.where(mark)} to generate the unit again"
                )
            shards.append(shard)
    return manifest.model_copy(update={"shards": shards, "complete": len(shards) == len(manifest.units), "sha256": ""})


def replies_of(storage: Storage, manifest: GeneratedManifest) -> Iterator[tuple[Prompt, Reply]]:
    """Yield all replies, also rejected ones, with their prompts, in the order of the plan. Raises CorruptCacheError."""
    units = {unit.name: unit for unit in manifest.units}
    for shard in manifest.shards:
        prompts = {prompt.key: prompt for prompt in read_unit_prompts(storage, units[shard.name])}
        name = replies_name(shard.name)
        for reply in read_rows(Reply, storage, name, shard.file, shard.replies):
            if reply.key not in prompts:
                raise CorruptCacheError(f"{storage.where(name)}: a reply to no prompt of its unit ({reply.key})")
            yield prompts[reply.key], reply
