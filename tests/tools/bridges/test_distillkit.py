"""DistillKit's layout, against an independent decoder written from its description with bit strings and struct."""

import math
import re
import struct
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from schemas.cache_config import LogitsCapture
from schemas.errors import UserError
from support.models import VOCAB_SIZE, tiny_tokenizer
from support.synthetic import logits_sample, random_shards, token_sample, write_cache
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.bridges.captured_source import CapturedOptions
from tools.bridges.compression import Compression, pack_bits
from tools.bridges.distillkit import SCHEMA, fill_rows
from tools.bridges.export import export
from tools.bridges.imports import import_files
from tools.checking.verify import verify

CAPTURES = {
    "top_k": LogitsCapture(k=32),
    "all_rows": LogitsCapture(k=8, positions="all"),
    "nucleus": LogitsCapture(policy="nucleus", k=32, mass=0.5),
}


def silent(done: int, total: int) -> None:
    assert 0 < done <= total


def exported(folder: Path, capture: LogitsCapture) -> tuple[str, Path]:
    url, out = str(folder / "cache"), folder / "out"
    shards = random_shards([[9, 5, 30], [7, 12]], VOCAB_SIZE, capture, counting=0.7)
    write_cache(url, shards, VOCAB_SIZE, capture)
    export(url, str(out), "distillkit", None, 20, silent)
    return url, out


def decoded(row: dict, k: int, bits: int) -> list[tuple[list[int], list[float]]]:
    """Ids and log-probabilities of each token row of a data set row."""
    rows = []
    for ids, logprobs in zip(row["bytepacked_indices"], row["compressed_logprobs"], strict=True):
        text = "".join(f"{byte:08b}" for byte in ids)
        rows.append(
            (
                [int(text[bits * i : bits * (i + 1)], 2) for i in range(k)],
                list(struct.unpack(f"<{k}f", bytes(logprobs))),
            )
        )
    return rows


@pytest.mark.parametrize("name", CAPTURES)
def test_datasets_reads_rows_of_the_layout(tmp_path: Path, name: str) -> None:
    capture = CAPTURES[name]
    url, out = exported(tmp_path, capture)
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md", "compression_config.yaml", "data_0.parquet", "data_1.parquet",
    ]  # fmt: skip
    settings = yaml.safe_load((out / "compression_config.yaml").read_text())
    assert (settings["d"], settings["k"], settings["exact_k"]) == (VOCAB_SIZE, capture.k, capture.k)
    assert not settings["delta_encoding"]
    rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "hf"))
    reader, found = CacheReader(url), 0
    assert len(rows) == len(reader)
    for position, row in enumerate(rows):
        tokens, logits = reader.read_tokens(position), reader.read_logits(position)
        entries = decoded(row, capture.k, 9)
        assert row["input_ids"] == tokens.input_ids.tolist()
        assert len(entries) == len(tokens.input_ids)
        assert row["labels"] == np.where(tokens.loss_mask, tokens.input_ids.astype(int), -100).tolist()
        for t, (ids, logprobs) in enumerate(entries):
            assert len(set(ids)) == capture.k
            assert np.isfinite(logprobs).all()
            if t not in logits.positions:
                assert row["labels"][t] == -100
                np.testing.assert_allclose(logprobs, -math.log(VOCAB_SIZE), rtol=1e-6)
                continue
            p = logits.positions.tolist().index(t)
            count = logits.counts[p]
            assert ids[:count] == logits.ids[p, :count].tolist()
            np.testing.assert_array_equal(np.float32(logprobs[:count]), logits.logprobs[p, :count])
            assert logprobs[count:] == [-1e4] * (capture.k - count)
            if t + 1 < len(tokens.input_ids) and tokens.input_ids[t + 1] in ids[:count]:
                entry = logprobs[ids.index(tokens.input_ids[t + 1])]
                assert entry == pytest.approx(logits.next_logprob[p], abs=1 / 32 + 1 / 2048)
                found += 1
    assert found > (3 if name == "top_k" else 0)


@pytest.mark.parametrize("name", CAPTURES)
def test_what_is_imported_is_what_was_exported(tmp_path: Path, name: str, teacher: Path) -> None:
    """Entries of rows in the loss mask are bit-identical; next_logprob, where stored, is within half a step."""
    url, out = exported(tmp_path, CAPTURES[name])
    again = str(tmp_path / "again")
    options = CapturedOptions(str(teacher), teacher_name="theirs", layer="code")
    made = import_files(str(out), again, "distillkit", options, 20, silent)
    assert made.shards > 1
    assert verify(again).problems == []
    first, second = CacheReader(url), CacheReader(again)
    sums = {"estimated": 0, "rows": 0}
    assert len(first) == len(second)
    for position in range(len(first)):
        old, new = first.read_tokens(position), second.read_tokens(position)
        np.testing.assert_array_equal(new.input_ids, old.input_ids)
        np.testing.assert_array_equal(new.loss_mask, old.loss_mask)
        assert new.layer == "code"
        assert new.source_id.startswith("data_")
        wanted, found = first.read_logits(position), second.read_logits(position)
        counts = np.isin(wanted.positions, np.flatnonzero(old.loss_mask))
        np.testing.assert_array_equal(found.positions, wanted.positions[counts])
        for field in ("ids", "logprobs", "counts"):
            np.testing.assert_array_equal(getattr(found, field), getattr(wanted, field)[counts])
        stored = (found.ids == new.input_ids[found.positions + 1][:, None]) & np.isfinite(found.logprobs)
        stored = stored.any(axis=1)
        error = np.abs(found.next_logprob - wanted.next_logprob[counts])[stored]
        assert error.max(initial=0) <= 1 / 32 + 1 / 1024
        sums["estimated"] += int((~stored).sum())
        sums["rows"] += len(stored)
    manifest = read_manifest(Storage(again))
    assert manifest.teacher.name == "theirs"
    assert manifest.teacher.vocab_size == VOCAB_SIZE
    assert manifest.capture.logits.temperatures == [1.0]
    assert manifest.corpus.counts.loss_tokens == sums["rows"]
    assert manifest.derived is not None
    assert manifest.derived.action == "import"
    assert f"Of {sums['rows']} rows, the realised token is not stored at {sums['estimated']};" in made.notes
    assert "configuration alone" in made.notes
    assert sums["estimated"] > 0


def test_an_estimate_is_the_rest_spread_evenly(tmp_path: Path, teacher: Path) -> None:
    """By hand: 3 entries of 0.5, 0.25 and 0.01 leave a mass of 0.24 for 381 tokens."""
    values = np.log([[0.5, 0.25, 0.01], [0.5, 0.25, 0.2], [0.5, 0.25, 1e-4]])
    write_raw(tmp_path / "in", [[7, 5, 300]], [[[1, 5, 300]] * 2], [values[:2].tolist()])
    import_files(str(tmp_path / "in"), str(tmp_path / "out"), "distillkit", options(teacher), 100, silent)
    found = CacheReader(str(tmp_path / "out")).read_logits(0)
    np.testing.assert_allclose(found.next_logprob, np.log([0.25, 0.2]), atol=1 / 512)
    write_raw(tmp_path / "in2", [[7, 9, 9, 9]], [[[1, 5, 300]] * 3], [values.tolist()])
    with pytest.raises(UserError, match="log-partition at temperature 1 contradicts"):  # 381 tokens of ≤ 1e-4
        import_files(str(tmp_path / "in2"), str(tmp_path / "out2"), "distillkit", options(teacher), 100, silent)
    write_raw(tmp_path / "in3", [[7, 9, 9]], [[[1, 5, 300]] * 2], [values[:2].tolist()])
    import_files(str(tmp_path / "in3"), str(tmp_path / "out3"), "distillkit", options(teacher), 100, silent)
    found = CacheReader(str(tmp_path / "out3")).read_logits(0)
    np.testing.assert_allclose(found.next_logprob, np.log([0.24 / 381, 0.05 / 381]), atol=1 / 512)


def options(teacher: Path) -> CapturedOptions:
    return CapturedOptions(str(teacher))


def write_raw(folder: Path, input_ids: list, ids: list, values: list, **more: list) -> Path:
    """A file of uncompressed rows."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"input_ids": input_ids, "token_ids": ids, "top_values": values, **more}
    pq.write_table(pa.table(columns), folder / "data_0.parquet")
    return folder


def test_packed_rows_are_taken_apart(tmp_path: Path, teacher: Path) -> None:
    """Sequences are split by their numbers in the mask; padding and single tokens are dropped."""
    ids = [[t, 380, 381] for t in range(8)]
    values = [np.log([0.9, 0.05, 0.02]).tolist()] * 8
    mask = [1, 1, 1, 2, 2, 3, 0, 0]
    write_raw(tmp_path / "in", [[10, 11, 12, 20, 21, 30, 0, 0]], [ids], [values], attention_mask=[mask])
    made = import_files(str(tmp_path / "in"), str(tmp_path / "out"), "distillkit", options(teacher), 100, silent)
    reader = CacheReader(str(tmp_path / "out"))
    assert [reader.read_tokens(i).input_ids.tolist() for i in range(2)] == [[10, 11, 12], [20, 21]]
    assert [reader.read_logits(i).ids[:, 0].tolist() for i in range(2)] == [[0, 1], [3]]
    assert (made.samples, made.rows) == (2, 3)
    assert read_manifest(Storage(str(tmp_path / "out"))).corpus.counts.too_short == 1


@pytest.mark.parametrize(("padding", "wanted"), [("<|im_end|>", [5, 6, 7]), ("<|endoftext|>", [5, 6, 7, 2])])
def test_padding_behind_a_sequence_is_taken_away(tmp_path: Path, teacher: Path, padding: str, wanted: list) -> None:
    """DistillKit appends one token to get a row for every other; it may equal the end-of-text token."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = padding
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    rows = [[[1, 2, 3]] * 3]
    write_raw(tmp_path / "in", [[5, 6, 7, 2]], rows, [[np.log([0.9, 0.05, 0.02]).tolist()] * 3])
    options = CapturedOptions(str(teacher), tokenizer=str(tmp_path / "tokenizer"))
    import_files(str(tmp_path / "in"), str(tmp_path / "out"), "distillkit", options, 100, silent)
    reader = CacheReader(str(tmp_path / "out"))
    assert reader.read_tokens(0).input_ids.tolist() == wanted
    assert len(reader.read_logits(0).positions) == len(wanted) - 1


def test_the_text_is_what_the_tokens_spell(tmp_path: Path, teacher: Path) -> None:
    """Even if a sequence ends inside a character."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer("def f7(x): ü → 😀")["input_ids"][:-1]
    rows = len(ids) - 1
    write_raw(tmp_path / "in", [ids], [[[1, 2, 3]] * rows], [[np.log([0.9, 0.05, 0.02]).tolist()] * rows])
    import_files(str(tmp_path / "in"), str(tmp_path / "out"), "distillkit", options(teacher), 100, silent)
    tokens = CacheReader(str(tmp_path / "out")).read_tokens(0)
    assert tokens.text.startswith("def f7(x): ü → \ufffd")
    data = tokens.text.encode()
    pieces = [data[start:end] for start, end in zip(tokens.byte_start, tokens.byte_end, strict=True)]
    assert b"".join(pieces) == data
    assert pieces[0].decode() == tokenizer.decode(ids[:1])


def test_rows_are_fill_rows_with_ids_that_they_lack() -> None:
    capture = LogitsCapture(policy="nucleus", k=6, mass=0.6)
    sample = token_sample(range(20))
    rng = np.random.default_rng(0)
    logits = logits_sample(rng.normal(0, 3, (20, 9)), sample.input_ids % 9, capture)
    ids, logprobs = fill_rows(logits)
    assert (logits.counts < 6).any()
    for p, count in enumerate(logits.counts):
        assert ids[p, :count].tolist() == logits.ids[p, :count].tolist()
        assert ids[p, count:].tolist() == [i for i in range(9) if i not in ids[p, :count]][: 6 - count]
        assert (logprobs[p, count:] == -1e4).all()


@pytest.mark.parametrize(("tail", "counts", "cut"), [([-3.0, -2.0], [4, 4], 0), ([-60.0, 0.5], [2, 2], 2)])
def test_approximations_are_put_in_order_or_left_out(
    tmp_path: Path, teacher: Path, tail: list[float], counts: list[int], cut: int
) -> None:
    """Two exact entries, and a line through ``tail``."""
    settings = Compression(d=VOCAB_SIZE, k=4, exact_k=2, polynomial_terms=[0, 1], delta_encoding=False)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    row = struct.pack("<4f", math.log(0.5), math.log(0.3), tail[0], tail[1] - tail[0])
    ids = pack_bits(np.array([[3, 1, 4, 2]]), settings.id_bits)[0].tolist()
    columns = {
        "input_ids": [[1, 2, 3]], "labels": [[1, 2, 3]],
        "compressed_logprobs": [[list(row)] * 2], "bytepacked_indices": [[ids] * 2],
    }  # fmt: skip
    pq.write_table(pa.table(columns, schema=SCHEMA), folder / "data_0.parquet")
    made = import_files(str(folder), str(tmp_path / "out"), "distillkit", options(teacher), 100, silent)
    logits = CacheReader(str(tmp_path / "out")).read_logits(0)
    assert logits.counts.tolist() == counts
    assert logits.ids[0].tolist() == ([3, 1, 2, 4] if cut == 0 else [3, 1, 0, 0])
    assert ("contradicted themselves" in made.notes) == (cut > 0)
    assert verify(str(tmp_path / "out")).problems == []


def test_the_card_says_what_distillkits_trainer_wants_and_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set saved to disk, with packed rows: the card's own lines are executed."""
    _, out = exported(tmp_path, CAPTURES["top_k"])
    card = (out / "README.md").read_text()
    assert "packed rows of one length" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(out)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    exec(code, {})
    saved = datasets.load_from_disk(str(out / "saved"))
    assert saved.column_names == SCHEMA.names
    assert len(saved) == 5
    (settings,) = [text for text in re.findall(r"```yaml\n(.*?)```", card, flags=re.DOTALL) if "prepacked" in text]
    assert yaml.safe_load(settings)["dataset"]["prepacked"] is True
