"""``cache-tools catalog``: an index of the caches below a folder, as JSON and as an HTML page."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

from schemas.catalog_file import (
    CATALOG_VERSION,
    MAX_NOTES,
    MAX_PROBLEMS,
    MAX_SIGNATURES,
    Catalog,
    CatalogEntry,
    CatalogProblem,
    CatalogSignature,
    CatalogTeacher,
)
from schemas.errors import UserError
from schemas.load import parse_json, validate
from teacher_cache.shards.lease import whole_place
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import MAX_MANIFEST_BYTES, Storage
from teacher_cache.text import one_line
from tools.finding.prefix import DEPTH, THREADS, Found, Prefix
from tools.finding.words import capture_in_words, total_bytes
from tools.trust.signatures import valid_signatures

CATALOG, PAGE = "catalog.json", "catalog.html"
MAX_CATALOG_VALUES = 400_000
MAX_CATALOG_BYTES = 1 << 24  # 5,000 caches at about 2,000 bytes each take a little over half


def scan(url: str, depth: int = DEPTH, advance: Callable[[int, int], None] = lambda done, total: None) -> Catalog:
    """Scan the caches below ``url``; unreadable ones are listed as the catalogue's problems.

    ``advance(done, total)`` counts folders first, then caches. Raises UserError when there is nothing at ``url``.
    """
    prefix = Prefix(url)
    listing = prefix.listing(depth, advance)
    caches: list[CatalogEntry] = []
    problems = dict(listing.problems)
    with ThreadPoolExecutor(THREADS) as pool:
        entries = pool.map(partial(_entry, prefix), listing.caches)
        for done, (found, entry) in enumerate(zip(listing.caches, entries, strict=True), 1):
            advance(done, len(listing.caches))
            if isinstance(entry, str):
                problems[found.path] = entry
            else:
                caches.append(entry)
    return Catalog(
        written_at=datetime.now(UTC).replace(microsecond=0),
        caches=caches,
        problems=[
            CatalogProblem(path=path, reason=one_line(problems[path], MAX_NOTES))
            for path in sorted(problems)[:MAX_PROBLEMS]
        ],
        left_out=listing.left_out,
    )


def update(
    url: str, depth: int = DEPTH, advance: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Catalog, list[str]]:
    """Scan and write under a lease, so that an older scan never overwrites a newer one.

    Returns the catalogue and the locations of its files. Raises ConflictError while another process holds the lease.
    """
    Prefix(url).listing(1)  # before the lease, which would create a mistyped folder
    with whole_place(Storage(url), "cache-tools catalog") as lease:
        catalog = scan(url, depth, advance)
        return catalog, write(lease.storage, catalog)


def write(storage: Storage, catalog: Catalog) -> list[str]:
    """Write the catalogue and its page, each atomically; returns their locations."""
    from tools.finding.page import page

    storage.write(PAGE, page(catalog).encode())
    storage.write(CATALOG, (catalog.model_dump_json(indent=1) + "\n").encode())
    return [storage.where(name) for name in (CATALOG, PAGE)]


def read(url: str) -> Catalog | None:
    """The catalogue at ``url``, or None if there is none. Raises UserError when it is invalid or too large."""
    storage = Storage(url)
    if not storage.exists(CATALOG):
        return None
    where = storage.where(CATALOG)
    try:
        catalog = parse_json(Catalog, storage.read(CATALOG, MAX_CATALOG_BYTES), where, MAX_CATALOG_VALUES)
    except UserError as error:
        raise UserError(f"{error}; use --scan to read the caches themselves") from None
    if catalog.catalog_version > CATALOG_VERSION:
        raise UserError(
            f"{where}: catalog_version {catalog.catalog_version}, wanted at most {CATALOG_VERSION}; update this "
            "package, or use --scan"
        )
    return catalog


def _entry(prefix: Prefix, found: Found) -> CatalogEntry | str:
    """A cache's entry, or the error that prevented it."""
    storage = prefix.cache(found.path)
    try:
        if found.bytes > MAX_MANIFEST_BYTES:
            raise UserError(f"manifest.json: {found.bytes} bytes, wanted at most {MAX_MANIFEST_BYTES}")
        return catalog_entry(storage, found)
    except UserError as error:
        return str(error).replace(storage.where(""), "")


def catalog_entry(storage: Storage, found: Found) -> CatalogEntry:
    """The entry of the cache at ``storage``. Raises UserError when its manifest is invalid."""
    manifest = read_manifest(storage)
    sizes = {signal: manifest.totals.bytes[signal] for signal in sorted(manifest.totals.bytes)}
    teacher, provenance = manifest.teacher, manifest.provenance
    tree = {
        "path": found.path,
        "manifest_sha256": manifest.sha256,
        "format_version": manifest.format_version,
        "complete": manifest.complete,
        "teacher": CatalogTeacher(
            name=one_line(teacher.name),
            revision=None if teacher.revision is None else one_line(teacher.revision),
            architecture=one_line(teacher.architecture),
            dtype=one_line(teacher.dtype),
            fingerprint=teacher.fingerprint,
        ),
        "tokenizer": manifest.tokenizer,
        "samples": manifest.totals.samples,
        "tokens": manifest.totals.tokens,
        "bytes": total_bytes(manifest),
        "bytes_by_signal": sizes,
        "capture": capture_in_words(manifest),
        "licence": one_line(provenance.licence),
        "owner": one_line(provenance.owner),
        "notes": one_line(provenance.notes, MAX_NOTES),
        "written_at": found.written_at,
        "derived": None if manifest.derived is None else manifest.derived.action,
        "signatures": [
            CatalogSignature(
                public_key=public_key,
                signer=one_line(statement.signer),
                signed_at=statement.signed_at,
            )
            for public_key, statement in valid_signatures(storage, manifest)[:MAX_SIGNATURES]
        ],
    }
    return validate(CatalogEntry, tree, storage.where("manifest.json"))
