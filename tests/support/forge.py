"""Caches that are wrong in one chosen place, all else (checksums, sizes, digests) being consistent with it."""

import hashlib
import itertools
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import zstandard
from hypothesis import strategies as st

from support.synthetic import file_entry, write_tar
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


def frame_of(parts: Sequence[bytes]) -> bytes:
    """The zstd frame of these sections."""
    sizes = struct.pack(f"<{len(parts)}I", *map(len, parts))
    return zstandard.compress(sizes + b"".join(parts))


def sections(payload: bytes, frame: str = "frame") -> list[bytes]:
    """The sections of the frame in a payload's column ``frame``."""
    content, sizes = zstandard.decompress(columns(payload)[frame]), []
    while 4 * len(sizes) + sum(sizes) < len(content):  # the number of sections is the only one that fits
        sizes += struct.unpack_from("<I", content, 4 * len(sizes))
    ends = itertools.accumulate(sizes, initial=4 * len(sizes))
    return [content[start:end] for start, end in itertools.pairwise(ends)]


def with_sections(payload: bytes, changed: Mapping[int, bytes], frame: str = "frame") -> bytes:
    """A payload with some sections of its column ``frame`` replaced, by number; their table of sizes follows."""
    parts = sections(payload, frame)
    for number, part in changed.items():
        parts[number] = part
    schema = pa.ipc.open_stream(payload).schema
    return arrow_stream(schema, [columns(payload) | {frame: frame_of(parts)}])


def with_changed_bytes(parts: Sequence[bytes], data: st.DataObject) -> list[bytes]:
    """One to three bytes of the sections changed, anywhere; where all are empty, a byte in the first."""
    changed = [bytearray(part) for part in parts]
    if not any(changed):
        changed[0] = bytearray(1)
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.sampled_from([part for part in changed if part]))
        part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    return [bytes(part) for part in changed]


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
    digest = hashlib.sha256(json.dumps(tree | {"sha256": ""}).encode()).hexdigest()
    storage.write(MANIFEST, json.dumps(tree | {"sha256": digest}).encode())


def follow_totals(manifest: Tree) -> None:
    """Sums over the shards that a manifest lists."""
    shards = manifest["shards"]
    manifest["totals"] = {
        "samples": sum(shard["samples"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "bytes": {
            name: sum(shard["files"][name]["bytes"] for shard in shards if name in shard["files"])
            for name in shards[0]["files"]
        },
        "index_bytes": sum(shard["index"]["bytes"] for shard in shards),
    }


def declare(url: str, **values: int) -> None:
    """Change what the manifest says of the first shard, and of the unit that it was planned as."""
    change_manifest(url, lambda tree: [entries[0].update(values) for entries in (tree["units"], tree["shards"])])


def change_index(url: str, change: Callable[[Tree], object]) -> None:
    """Rewrite the first shard's index; the manifest's entries of index and tars follow, and its totals."""
    storage = Storage(url)
    tree = json.loads(storage.read(mark_name(SHARD)))
    change(tree)
    data = json.dumps(tree).encode()
    storage.write(mark_name(SHARD), data)

    def follow(manifest: Tree) -> None:
        manifest["shards"][0]["index"] = file_entry(data).model_dump()
        manifest["shards"][0]["files"] |= {signal: member["file"] for signal, member in tree["signals"].items()}
        manifest["units"][0]["tokens_file"] = manifest["shards"][0]["files"]["tokens"]
        follow_totals(manifest)

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
