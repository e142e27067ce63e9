"""Re-tokenised texts kept on disk, one file for each shard, so that no epoch, rank or run tokenises it again.

A file is found by the digests of shard, teacher's vocabulary and tokenizer; one that is damaged is written again.
Anyone who may write to the folder can change what is trained on, as with local copies.
"""

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from schemas.errors import UserError
from schemas.failures import failure
from teacher_cache.retarget.row_targets import StudentTokens
from teacher_cache.retarget.student_text import StudentText

logger = logging.getLogger(__name__)
VERSION = 1  # of the files, and of how texts are tokenised
STOP, LEARNED, CHAT, LEFT_OUT = 1, 2, 1, 2
SCHEMA = pa.schema(
    [
        ("kind", pa.uint8()),  # CHAT, LEFT_OUT
        ("ids", pa.list_(pa.int32())),
        ("start", pa.list_(pa.int32())),
        ("end", pa.list_(pa.int32())),
        ("flags", pa.list_(pa.uint8())),  # STOP, LEARNED
    ]
)
CHECKSUM = b"xxh3_128"


class KeptTexts:
    """Texts of shards in one student's tokens."""

    def __init__(self, folder: Path, tokenizer: str, vocabulary: int) -> None:
        """``tokenizer``: its digest. ``vocabulary``: its size; larger ids are damage."""
        self._folder = folder
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary

    def of_shard(self, shard: str, make: Callable[[], Sequence[StudentText | None]]) -> Sequence[StudentText | None]:
        """The texts of a shard of this digest (its content's and vocabulary's); made and written if not there."""
        name = hashlib.sha256(f"{VERSION} {shard} {self._tokenizer}".encode()).hexdigest()
        path = self._folder / f"{name}.arrow"
        try:
            there = path.exists()
        except OSError as error:
            raise self._failed(error, "read") from None
        if not there:
            self._write(path, make())
        try:
            return TextsOfShard(path, self._vocabulary)
        except (pa.ArrowException, ValueError) as error:
            logger.warning("%s: made again: %s", path, error)
            self._write(path, make())
            return TextsOfShard(path, self._vocabulary)
        except OSError as error:
            raise self._failed(error, "read") from None

    def _write(self, path: Path, texts: Sequence[StudentText | None]) -> None:
        try:
            write_texts(path, texts)
        except OSError as error:
            raise self._failed(error, "written") from None

    def _failed(self, error: OSError, what: str) -> UserError:
        problem = f"data.retarget_cache: {self._folder}: texts cannot be {what}"
        return failure(error, problem, "choose another folder, or leave it out")


class TextsOfShard(Sequence[StudentText | None]):
    """The texts of one file, which is mapped into memory."""

    def __init__(self, path: Path, vocabulary: int) -> None:
        """Raises ArrowException or ValueError if the file is damaged."""
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            if reader.schema.remove_metadata() != SCHEMA or reader.num_record_batches != 1:
                raise ValueError("not a file of texts")
            batch = reader.get_batch(0)
            checksum = (reader.schema.metadata or {}).get(CHECKSUM)
        batch.validate(full=True)
        if checksum != _checksum(batch):
            raise ValueError("the checksum is not that of the content")
        self._kind = batch.column("kind").to_numpy()
        lists = [batch.column(name) for name in ("ids", "start", "end", "flags")]
        self._offsets = lists[0].offsets.to_numpy()
        self._ids, self._start, self._end, self._flags = (values.values.to_numpy() for values in lists)
        alike = all(np.array_equal(values.offsets.to_numpy(), self._offsets) for values in lists)
        if not alike or self._ids.min(initial=0) < 0 or self._ids.max(initial=0) >= vocabulary:
            raise ValueError("ids or spans that no tokenizer gives")

    def __len__(self) -> int:
        return len(self._kind)

    def __getitem__(self, number: Any) -> Any:
        """One text; None if it was left out."""
        if self._kind[number] & LEFT_OUT:
            return None
        span = slice(self._offsets[number], self._offsets[number + 1])
        flags_J = self._flags[span]
        tokens = StudentTokens(
            self._ids[span].astype(np.int64),
            self._start[span].astype(np.int64),
            self._end[span].astype(np.int64),
            flags_J & STOP > 0,
        )
        return StudentText(flags_J & LEARNED > 0, tokens, bool(self._kind[number] & CHAT))


def write_texts(path: Path, texts: Sequence[StudentText | None]) -> None:
    """Write the texts of a shard; the file is whole or not there."""
    there = [text for text in texts if text is not None]
    sizes = [0 if text is None else len(text.ids_J) for text in texts]
    offsets = pa.array(np.cumsum([0, *sizes]), pa.int32())
    kinds = np.array([LEFT_OUT if text is None else CHAT * text.is_chat for text in texts], np.uint8)
    nothing = [np.empty(0, np.int64)]
    columns = [
        np.concatenate(nothing + [text.tokens.ids_J for text in there]).astype(np.int32),
        np.concatenate(nothing + [text.tokens.start_J for text in there]).astype(np.int32),
        np.concatenate(nothing + [text.tokens.end_J for text in there]).astype(np.int32),
        np.concatenate(nothing + [STOP * text.tokens.is_stop_J + LEARNED * text.loss_mask_J for text in there]).astype(
            np.uint8
        ),
    ]
    arrays = [pa.array(kinds), *(pa.ListArray.from_arrays(offsets, pa.array(values)) for values in columns)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".tmp-{secrets.token_hex(8)}")  # hosts that share a folder share process ids
    try:
        with pa.ipc.new_file(str(unfinished), SCHEMA.with_metadata({CHECKSUM: _checksum(batch)})) as writer:
            writer.write_batch(batch)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _checksum(batch: pa.RecordBatch) -> bytes:
    digest = xxhash.xxh3_128()
    for column in batch.columns:
        values = column if column.type == pa.uint8() else column.values
        digest.update(values.to_numpy())
    digest.update(batch.column("ids").offsets.to_numpy())
    return digest.hexdigest().encode()
