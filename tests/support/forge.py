"""Caches that are wrong in one chosen place, all else (checksums, sizes, digests) being consistent with it."""

import json
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import zstandard

from schemas.arrow import LOGITS_SCHEMA
from support.synthetic import file_entry, write_tar
from teacher_cache.codec.rows import Sizes
from teacher_cache.shards.marks import mark_name, tar_name
from teacher_cache.shards.storage import MANIFEST, Storage

SHARD = "shard-000000"
Tree = dict[str, Any]


def arrow_stream(schema: pa.Schema, rows: list[Tree], **options: Any) -> bytes:
    """An Arrow IPC stream, written by pyarrow alone; ``options`` are those of ``pa.ipc.IpcWriteOptions``."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return sink.getvalue().to_pybytes()


def columns(payload: bytes) -> Tree:
    """The one row of a payload, read by pyarrow alone."""
    return pa.ipc.open_stream(payload).read_all().to_pylist()[0]


def sections(payload: bytes) -> dict[str, bytes]:
    """The sections of a logits payload."""
    row = columns(payload)
    data, sections, start = zstandard.decompress(row["frame"]), {}, 0
    for name, size in zip(Sizes._fields, row["sizes"], strict=True):
        sections[name] = data[start : start + size]
        start += size
    return sections


def with_sections(payload: bytes, **changed: bytes) -> bytes:
    """A logits payload with some of its sections replaced; sizes and frame follow."""
    parts = sections(payload) | changed
    sizes = [len(part) for part in parts.values()]
    return arrow_stream(LOGITS_SCHEMA, [{"sizes": sizes, "frame": zstandard.compress(b"".join(parts.values()))}])


def claiming_frame(size: int) -> bytes:
    """A zstd frame of a few bytes whose header declares a content of ``size`` bytes.

    Source: RFC 8878, 3.1.1: single segment, content size of 8 bytes, one last block that repeats a byte.
    """
    block_size = min(size, 128 * 1024 - 1)
    last_rle_block = struct.pack("<I", (block_size << 3) | (1 << 1) | 1)[:3] + b"\0"
    return struct.pack("<IBQ", 0xFD2FB528, 0xE0, size) + last_rle_block


def change_manifest(url: str, change: Callable[[Tree], object]) -> None:
    """Rewrite manifest.json."""
    storage = Storage(url)
    tree = json.loads(storage.read(MANIFEST))
    change(tree)
    storage.write(MANIFEST, json.dumps(tree).encode())


def change_index(url: str, change: Callable[[Tree], object]) -> None:
    """Rewrite the first shard's index; the manifest's entries of index and tars follow."""
    storage = Storage(url)
    tree = json.loads(storage.read(mark_name(SHARD)))
    change(tree)
    data = json.dumps(tree).encode()
    storage.write(mark_name(SHARD), data)

    def follow(manifest: Tree) -> None:
        manifest["shards"][0]["index"] = file_entry(data).model_dump()
        manifest["shards"][0]["files"] = {signal: member["file"] for signal, member in tree["signals"].items()}

    change_manifest(url, follow)


def change_payload(url: str, signal: str, row: int, change: Callable[[bytes], bytes]) -> None:
    """Rewrite one sample's payload in the first shard; tar, index and manifest follow."""
    storage = Storage(url)
    index = json.loads(storage.read(mark_name(SHARD)))
    member = index["signals"][signal]
    data = storage.read(tar_name(SHARD, signal))
    spans = zip(member["offsets"], member["sizes"], strict=True)
    payloads = [data[offset : offset + size] for offset, size in spans]
    payloads[row] = change(payloads[row])
    written = write_tar(storage, SHARD, signal, list(zip(index["keys"], payloads, strict=True)))
    change_index(url, lambda tree: tree["signals"].update({signal: written.model_dump()}))
