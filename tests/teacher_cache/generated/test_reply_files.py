import numpy as np
import pyarrow as pa
import pytest
import zstandard

from schemas.arrow import REPLIES_SCHEMA
from schemas.errors import CorruptCacheError
from schemas.generated_manifest import ContentEntry
from teacher_cache.codec.message import write_batch
from teacher_cache.generated.reply_files import Prompt, Reply, read_rows, write_rows
from teacher_cache.shards.storage import Storage, file_entry


def replies(count: int) -> list[Reply]:
    rng = np.random.default_rng(0)
    return [
        Reply(
            key=f"{i // 2:032x}", sample=i % 2, reply=f"🦜 {i}",
            reply_ids=rng.integers(0, 1 << 20, i).astype(np.uint32),
            finish="stop", reason="", seed=i << 55, sampling="ab", template="cd", generator="ef",
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def place(tmp_path) -> Storage:
    return Storage(str(tmp_path))


def write_raw(place: Storage, content: bytes, declared: int | None = None, frame: bytes | None = None) -> ContentEntry:
    data = zstandard.ZstdCompressor().compress(content) if frame is None else frame
    place.put("x.zst", data)
    return ContentEntry(**file_entry(data).model_dump(), content_bytes=len(content) if declared is None else declared)


def test_rows_are_read_as_they_were_written(place: Storage) -> None:
    rows = replies(9)
    entry = write_rows(place, "r.zst", rows)
    again = read_rows(Reply, place, "r.zst", entry, 9)
    for one, other in zip(rows, again, strict=True):
        assert np.array_equal(one.reply_ids, other.reply_ids)
        assert all(getattr(one, name) == getattr(other, name) for name in REPLIES_SCHEMA.names if name != "reply_ids")
    assert write_rows(place, "s.zst", rows) == entry, "equal rows give equal bytes"


def test_damage_is_found(place: Storage) -> None:
    entry = write_rows(place, "r.zst", replies(3))
    data = place.read("r.zst")
    for at in range(0, len(data), 7):
        place.put("r.zst", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(CorruptCacheError, match=r"r\.zst: sha256 is"):
            read_rows(Reply, place, "r.zst", entry, 3)


def batch(**changes: object) -> bytes:
    rows = {name: [getattr(replies(2)[1], name)] for name in REPLIES_SCHEMA.names}
    rows["reply_ids"] = [b"\0\0\0\1"]
    return write_batch(pa.RecordBatch.from_pydict({**rows, **changes}, schema=REPLIES_SCHEMA))


def test_hostile_content_is_refused_with_its_place(place: Storage) -> None:
    plain = batch()
    assert len(read_rows(Reply, place, "x.zst", write_raw(place, plain), 1)) == 1
    bad = batch(reply=["abcd"]).replace(b"abcd", b"ab\xff\xff")
    nulls = write_batch(pa.RecordBatch.from_pydict({n: [None] for n in REPLIES_SCHEMA.names}, schema=pa.schema(
        [field.with_nullable(True) for field in REPLIES_SCHEMA])))  # fmt: skip
    cases = [
        (write_raw, (place, bad), 1),
        (write_raw, (place, nulls), 1),
        (write_raw, (place, plain, len(plain) + 1), 1),
        (write_raw, (place, plain, len(plain) - 1), 1),
        (write_raw, (place, plain, None, b"no frame"), 1),
        (write_raw, (place, plain, None, zstandard.ZstdCompressor().compress(plain)[:-3]), 1),
        (write_raw, (place, plain[:-20]), 1),
        (write_raw, (place, batch(reply_ids=[b"abc"])), 1),
        (write_raw, (place, plain), 2),
    ]
    for make, arguments, rows in cases:
        entry = make(*arguments)
        with pytest.raises(CorruptCacheError, match=r"x\.zst: "):
            read_rows(Reply, place, "x.zst", entry, rows)
    with pytest.raises(CorruptCacheError, match=r"x\.zst: the Arrow schema is"):
        read_rows(Prompt, place, "x.zst", write_raw(place, plain), 1)
