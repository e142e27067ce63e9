"""Imports are checked: the first invalid value ends one, naming file and row, and leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from schemas.cache_config import LogitsCapture, TeacherConfig
from schemas.errors import UserError
from support.models import VOCAB_SIZE, write_random_teacher
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.new_place import UNDER_WAY
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.teacher import describe_teacher
from tools.bridges import imports, parquet_files
from tools.bridges.captured_source import CapturedOptions
from tools.bridges.export import export
from tools.bridges.imports import import_files
from tools.checking.verify import verify

Tree = dict[str, Any]
K = 8


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache exported to both layouts."""
    folder = tmp_path_factory.mktemp("originals")
    capture = LogitsCapture(k=K)
    write_cache(str(folder / "cache"), random_shards([[9, 5, 7, 6]], VOCAB_SIZE, capture), VOCAB_SIZE, capture)
    for layout in ("parquet", "distillkit"):
        export(str(folder / "cache"), str(folder / layout), layout, None, 1_000_000, lambda *_: None)
    return folder


def rewritten(originals: Path, layout: str, folder: Path, change: Callable[[list[Tree]], None]) -> Path:
    """A copy of an export with changed rows."""
    shutil.copytree(originals / layout, folder)
    file = next(folder.rglob("*.parquet"))
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    return folder


def setter(row: int, column: str, *path: int, value: Any) -> Callable[[list[Tree]], None]:
    """A change that sets the value at ``path`` of a column."""

    def change(rows: list[Tree]) -> None:
        node: Any = rows[row]
        keys = [column, *path]
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


def drop_last(row: int, column: str, *path: int) -> Callable[[list[Tree]], None]:
    def change(rows: list[Tree]) -> None:
        node: Any = rows[row][column]
        for key in path:
            node = node[key]
        node.pop()

    return change


def swap(row: int, column: str, p: int) -> Callable[[list[Tree]], None]:
    def change(rows: list[Tree]) -> None:
        entries = rows[row][column][p]
        entries[0], entries[-1] = entries[-1], entries[0]

    return change


NAN, INFINITE = float("nan"), float("inf")
PARQUET = {
    "a NaN": (setter(2, "logprobs", 1, 3, value=NAN), "row 2: a log-probability is not a finite"),
    "an infinity": (setter(2, "logprobs", 1, 7, value=-INFINITE), "row 2: a log-probability is not a finite"),
    "above 0": (setter(1, "logprobs", 0, 0, value=2.0), "row 1, token 0: probabilities sum to more than 1"),
    "rising": (swap(3, "logprobs", 2), "row 3, token 2: log-probabilities are not in descending order"),
    "an id twice": (lambda rows: rows[0]["ids"][1].__setitem__(0, rows[0]["ids"][1][1]), "row 0, token 1: a token id"),
    "an id too large": (setter(1, "ids", 0, 2, value=VOCAB_SIZE), "row 1: ids: wanted 0 to 383"),
    "an id below 0": (setter(1, "ids", 0, 2, value=-1), "row 1: ids: wanted 0 to 383"),
    "an input id": (setter(1, "input_ids", 2, value=VOCAB_SIZE), "row 1: input_ids: wanted 0 to 383"),
    "a position": (setter(1, "positions", 3, value=5), "row 1: positions: wanted increasing ones below 5"),
    "falling positions": (setter(1, "positions", 1, value=0), "row 1: positions: wanted increasing"),
    "a missing mask": (drop_last(2, "loss_mask"), "row 2: 6 entries of loss_mask, wanted 7"),
    "a missing row": (drop_last(2, "ids"), "row 2: 5 entries of ids, wanted 6"),
    "a missing entry": (drop_last(2, "ids", 1), "row 2: ids and logprobs differ in row lengths"),
    "no entry": (lambda rows: [rows[0][c].__setitem__(0, []) for c in ("ids", "logprobs")], "row 0: rows of 0 to 8"),
    "a partition": (drop_last(0, "log_partitions", 3), "row 0: rows of log_partitions must have 2"),
    "a wrong partition": (setter(0, "log_partitions", 3, 1, value=-9.0), "row 0, token 3: the log-partition at"),
    "a NaN partition": (setter(0, "log_partitions", 3, 1, value=NAN), "row 0: a log-partition is not"),
    "the realised token": (setter(0, "next_logprob", 3, value=0.5), "row 0, token 3: the realised token"),
    "a NaN realised": (setter(0, "next_logprob", 3, value=NAN), "row 0: next_logprob is not a number"),
    "a last row that counts": (setter(0, "loss_mask", 8, value=True), "row 0: the last token is in the loss mask"),
    "a row that counts": (
        lambda rows: [rows[1][c].pop() for c in ("positions", "ids", "logprobs", "next_logprob", "log_partitions")],
        "row 1, token 3: it counts, and is not stored",
    ),
    "a span": (setter(0, "byte_end", 2, value=10**6), "row 0: byte_start and byte_end: a span is not within"),
    "a key": (setter(3, "key", value="../x"), "row 3: key '../x'"),
    "a key twice": (lambda rows: rows[3].__setitem__("key", rows[0]["key"]), "row 3: key .* occurs twice"),
    "a null": (setter(1, "key", value=None), "key: holds nulls"),
    "an inner null": (setter(1, "ids", 0, 2, value=None), "ids: holds nulls"),
    "a missing sample": (lambda rows: rows.pop(), "3 samples, but 4 were exported"),
    "no tokens": (
        lambda rows: [rows[2].__setitem__(c, []) for c, v in rows[2].items() if isinstance(v, list)],
        "row 2: 0 tokens, wanted 1 to",
    ),
}  # fmt: skip
DISTILLKIT = {
    "rows": (drop_last(1, "bytepacked_indices"), "row 1: 5 input_ids, 4 rows of bytepacked_indices and 5"),
    "bytes": (drop_last(1, "compressed_logprobs", 2), "row 1: token 2: 31 entries of log-probabilities, wanted 32"),
    "id bytes": (drop_last(1, "bytepacked_indices", 2), "row 1: token 2: 8 entries of ids, wanted 9"),
    "labels": (drop_last(3, "labels"), "row 3: 5 labels, wanted 6"),
    "ids beyond the vocabulary": (setter(0, "bytepacked_indices", 1, 0, value=255), "row 0: ids: wanted 0 to 383"),
    "an input id": (setter(2, "input_ids", 1, value=2**40), "row 2: input_ids from .* to 1099511627776"),
    "a huge input id": (setter(2, "input_ids", 1, value=2**64 - 1), "input_ids: holds 18446744073709551615"),
    "a NaN": (setter(2, "compressed_logprobs", 1, value=[0, 0, 192, 127] * K), "row 2: token 1: .* not a number"),
    "no entry": (setter(2, "compressed_logprobs", 1, value=[0, 0, 128, 255] * K), "token 1: .* without an entry"),
    "rising": (
        lambda rows: rows[2]["compressed_logprobs"][1].__setitem__(slice(0, 4), [0, 0, 0, 193]),  # -8
        "row 2: token 1: log-probabilities are not in descending order",
    ),
    "above 0": (setter(2, "compressed_logprobs", 1, 3, value=63), "row 2, token 1: probabilities sum to more than 1"),
    "no rows at all": (lambda rows: rows.clear(), "no file holds a sample with a row in the loss mask"),
}  # fmt: skip


def refused(path: Path, target: Path, layout: str, message: str, teacher: Path) -> str:
    with pytest.raises(UserError, match=message) as error:
        import_files(str(path), str(target), layout, CapturedOptions(str(teacher)), 12, lambda *_: None)
    assert not target.exists()
    return str(error.value)


@pytest.mark.parametrize("problem", PARQUET)
def test_a_wrong_value_is_refused(originals: Path, tmp_path: Path, problem: str, teacher: Path) -> None:
    change, message = PARQUET[problem]
    folder = rewritten(originals, "parquet", tmp_path / "in", change)
    said = refused(folder, tmp_path / "out", "parquet", message, teacher)
    assert problem == "a missing sample" or "train-00000.parquet" in said


@pytest.mark.parametrize("problem", DISTILLKIT)
def test_a_wrong_value_of_distillkit_is_refused(originals: Path, tmp_path: Path, problem: str, teacher: Path) -> None:
    change, message = DISTILLKIT[problem]
    folder = rewritten(originals, "distillkit", tmp_path / "in", change)
    said = refused(folder, tmp_path / "out", "distillkit", message, teacher)
    assert problem == "no rows at all" or "data_0.parquet" in said


def test_rewriting_alone_is_accepted(originals: Path, tmp_path: Path, teacher: Path) -> None:
    """The unchanged rows are valid, so the tests above refuse the change itself."""
    for layout in ("parquet", "distillkit"):
        folder = rewritten(originals, layout, tmp_path / layout, lambda rows: None)
        out = str(tmp_path / f"{layout}-out")
        import_files(str(folder), out, layout, CapturedOptions(str(teacher)), 12, lambda *_: None)
        assert verify(out).problems == []


def test_columns_of_other_types_are_refused(originals: Path, tmp_path: Path, teacher: Path) -> None:
    for layout, column, values in (
        ("parquet", "ids", pa.array([["a"]] * 4)), ("parquet", "logprobs", pa.array([1.0] * 4)),
        ("parquet", "text", pa.array([1] * 4)), ("distillkit", "compressed_logprobs", pa.array([[[0.5]]] * 4)),
        ("distillkit", "packed_indices", pa.array([[[1]]] * 4)),
    ):  # fmt: skip
        folder = tmp_path / f"{layout}-{column}"
        shutil.copytree(originals / layout, folder)
        file = next(folder.rglob("*.parquet"))
        table = pq.read_table(file)
        if column in table.column_names:
            table = table.set_column(table.column_names.index(column), column, values)
        else:
            table = table.append_column(column, values)
        pq.write_table(table, file)
        assert column in refused(folder, tmp_path / "out", layout, "wanted|older layout", teacher)
        if column == "packed_indices":
            continue
        pq.write_table(table.drop_columns(["input_ids"]), file)
        refused(folder, tmp_path / "out", layout, "input_ids", teacher)


def test_metadata_is_checked(originals: Path, tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(originals / "parquet", folder)
    file = next(folder.rglob("*.parquet"))
    table = pq.read_table(file)
    facts = json.loads(table.schema.metadata[b"teacher_cache"])
    huge = facts | {"logits": facts["logits"] | {"k": 65535}}
    for metadata, message in (
        ({}, "files written by"), (facts | {"version": 2}, "version"), (facts | {"x": 1}, "x: unknown"),
        (facts | {"teacher": facts["teacher"] | {"vocab_size": 2**30}}, "vocab_size"), (huge, "above the vocabulary"),
    ):  # fmt: skip
        stored = {b"teacher_cache": json.dumps(metadata).encode()} if metadata else None
        pq.write_table(table.replace_schema_metadata(stored), file)
        refused(folder, tmp_path / "out", "parquet", message, teacher)


def test_files_of_several_exports_are_not_mixed(originals: Path, tmp_path: Path, teacher: Path) -> None:
    capture = LogitsCapture(k=4)
    write_cache(str(tmp_path / "cache"), random_shards([[5]], VOCAB_SIZE, capture), VOCAB_SIZE, capture)
    export(str(tmp_path / "cache"), str(tmp_path / "other"), "parquet", None, 100, lambda *_: None)
    shutil.copytree(originals / "parquet", tmp_path / "in")
    shutil.copy(tmp_path / "other/data/train-00000.parquet", tmp_path / "in/data/train-00001.parquet")
    refused(tmp_path / "in", tmp_path / "out", "parquet", "a different cache", teacher)


def test_rows_too_large_and_files_of_other_kinds_are_refused(
    originals: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    refused(tmp_path / "in", tmp_path / "out", "parquet", "no \\*.parquet", teacher)
    refused(tmp_path / "nowhere", tmp_path / "out", "parquet", "no such file", teacher)
    (tmp_path / "in/a.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    refused(tmp_path / "in", tmp_path / "out", "parquet", "a.parquet: not a readable Parquet file", teacher)
    damaged = tmp_path / "damaged"
    shutil.copytree(originals / "parquet", damaged)
    file = next(damaged.rglob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[100:2000] = bytes(1900)
    file.write_bytes(data)
    refused(damaged, tmp_path / "out", "parquet", "cannot be read from row 0 on", teacher)
    monkeypatch.setattr(parquet_files, "MAX_ROW_VALUES", 30)
    for layout in ("parquet", "distillkit"):
        refused(originals / layout, tmp_path / "out", layout, "values of a column per row", teacher)


def test_a_target_with_files_is_left_alone(originals: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out: 1 files already there \(notes.txt, …\)"):
        import_files(str(originals / "parquet"), str(tmp_path / "out"), "parquet", CapturedOptions(), 12, print)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_leftovers_of_a_killed_import_are_overwritten(originals: Path, tmp_path: Path) -> None:
    made = [
        import_files(str(originals / "parquet"), str(tmp_path / name), "parquet", CapturedOptions(), 12, print)
        for name in ("whole", "killed")
    ]
    left = Storage(str(tmp_path / "killed"))
    left.delete(MANIFEST)
    left.write(UNDER_WAY, b"")
    left.write("shard-000099.json", b"half")
    again = import_files(str(originals / "parquet"), str(tmp_path / "killed"), "parquet", CapturedOptions(), 12, print)
    assert again.manifest_digest == made[0].manifest_digest
    assert left.names() == Storage(str(tmp_path / "whole")).names()


def test_a_failure_late_leaves_nothing(
    originals: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after shards and the code table are written."""
    seen = []

    def broken(*_: object) -> None:
        seen.extend(Storage(str(tmp_path / "out")).names())
        raise UserError("the disk is full")

    monkeypatch.setattr(imports, "write_manifest", broken)
    refused(originals / "parquet", tmp_path / "out", "parquet", "the disk is full", teacher)
    assert any(name.startswith("tables/") for name in seen)
    assert len(seen) > 4


def test_a_teacher_is_needed_and_fingerprinted_with_its_weights(originals: Path, tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(UserError, match="--teacher"):
        import_files(str(originals / "distillkit"), str(tmp_path / "out"), "distillkit", CapturedOptions(), 12, print)
    whole = write_random_teacher(tmp_path / "teacher")
    options = CapturedOptions(str(whole), teacher_dtype="float32", tokenizer=str(teacher))
    made = import_files(
        str(originals / "distillkit"), str(tmp_path / "out"), "distillkit", options, 12, lambda *_: None
    )
    found = read_manifest(Storage(str(tmp_path / "out"))).teacher
    assert found == describe_teacher(TeacherConfig(path=str(whole), dtype="float32"))
    assert "configuration alone" not in made.notes


def test_files_are_read_in_the_order_of_their_numbers(originals: Path, tmp_path: Path, teacher: Path) -> None:
    (tmp_path / "in").mkdir()
    source = pq.read_table(originals / "distillkit/data_0.parquet")
    for number in (0, 2, 10):
        pq.write_table(source.slice(min(number, 3), 1), tmp_path / f"in/data_{number}.parquet")
    shutil.copy(originals / "distillkit/compression_config.yaml", tmp_path / "in")
    options = CapturedOptions(str(teacher))
    import_files(str(tmp_path / "in"), str(tmp_path / "out"), "distillkit", options, 100, lambda *_: None)
    reader = CacheReader(str(tmp_path / "out"))
    found = [reader.read_tokens(position).source_id for position in range(3)]
    assert found == ["data_0.parquet#0", "data_2.parquet#0", "data_10.parquet#0"]


def test_equal_sequences_get_keys_of_their_own(originals: Path, tmp_path: Path, teacher: Path) -> None:
    def change(rows: list[Tree]) -> None:
        rows[1] = rows[0]

    folder = rewritten(originals, "distillkit", tmp_path / "in", change)
    options = CapturedOptions(str(teacher))
    import_files(str(folder), str(tmp_path / "out"), "distillkit", options, 12, lambda *_: None)
    keys = CacheReader(str(tmp_path / "out")).keys
    assert len(set(keys)) == 4


def test_a_shard_is_closed_when_it_fills_the_memory(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "MAX_SHARD_ENTRIES", 6 * K)
    out = str(tmp_path / "out")
    made = import_files(str(originals / "parquet"), out, "parquet", CapturedOptions(), 1000, lambda *_: None)
    assert made.shards == 3  # 8 rows; 4 and 6; 5
    assert np.diff(CacheReader(out).num_tokens).tolist() == [-4, 2, -1]


def test_yaml_is_loaded_safely(originals: Path, tmp_path: Path, teacher: Path) -> None:
    shutil.copytree(originals / "distillkit", tmp_path / "in")
    (tmp_path / "in/compression_config.yaml").write_text("!!python/object/apply:os.system ['true']")
    refused(tmp_path / "in", tmp_path / "out", "distillkit", "not valid YAML", teacher)
    assert yaml.safe_load((originals / "distillkit/compression_config.yaml").read_text())["k"] == K
