"""Caches of another tokenizer as the student reads them: tokens, mask, and the teacher's weights on these tokens."""

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, normalizers

from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest
from support.golden import BUNDLED
from support.models import tiny_tokenizer
from support.other_tokenizers import MERGES, NO_SYSTEM, other_tokenizer, write_cache_of_texts
from teacher_cache.records import LogitsSample, RowBatch
from teacher_cache.retarget.retargeter import Retargeted, Retargeter, teacher_tokens, with_draws
from teacher_cache.retarget.row_targets import TAUGHT
from teacher_cache.retarget.student_text import StudentTokenizer
from teacher_cache.shards.chats import chat_of
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.vocabulary_file import read_vocabulary, write_vocabulary
from teacher_cache.signals.hidden.capture import dequantise
from teacher_cache.token_table import TokenTable, Vocabulary
from trainer.data.alignment import FIRST
from trainer.data.batches import to_tensors
from trainer.data.open_for_student import open_for_student
from trainer.data.retargeted_reader import RetargetedReader
from trainer.data.student_side import RowForm, StudentSide, entries_of, student_side
from trainer.losses.target_form import stored_target
from trainer.losses.teacher_rows import teacher_rows
from trainer.losses.tla import tla_
from trainer.losses.token_map import TokenMap

ENTRIES = RowForm("top_k", 1.0, 13, with_untaught=True)
TAUGHT_ONLY = ENTRIES._replace(with_untaught=False)
FIXED = ("num_tokens", "positions")
Side = Callable[..., StudentSide]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("cache")
    draws = {"n": 6, "temperatures": [1.0, 3.0]}
    return str(write_cache_of_texts(place / "in", place / "cache", seed=1, draws=draws))


@pytest.fixture
def side(tmp_path: Path) -> Side:
    def make(tokenizer: Any = None, **changes: Any) -> StudentSide:
        folder = tmp_path / f"tokenizer-{len(list(tmp_path.iterdir()))}"
        (tokenizer or other_tokenizer()).save_pretrained(folder)
        return replace(student_side(folder, "student", False, None), **changes)

    return make


def opened(cache: str, side: StudentSide, rows: RowForm = ENTRIES) -> RetargetedReader:
    reader = open_for_student(cache, ("tokens", "logits"), side=side, rows=rows)
    assert isinstance(reader, RetargetedReader)
    return reader


def by_hand(cache: str, number: int, tokenizer: Any, temperature: float = 1.0, draws: bool = False) -> Retargeted:
    """A sample through the kernel alone."""
    reader = CacheReader(cache, ("tokens", "logits", "draws"))
    tokens, logits = reader.read_tokens(number), reader.read_logits(number)
    retarget = Retargeter(read_vocabulary(Storage(cache), reader.manifest), StudentTokenizer(tokenizer))
    column = reader.manifest.capture.logits.temperatures.index(temperature)
    text = retarget.read(tokens, chat_of(tokens, ""))
    assert text is not None
    teacher = teacher_tokens(tokens, logits, column, temperature)
    if draws:
        teacher = with_draws(teacher, reader.read_draws(number).ids[:, column], "tail")
    return Retargeted(text, retarget.targets(teacher, text))


def same(one: RowBatch, other: RowBatch) -> bool:
    arrays = {name: array for name, array in vars(one).items() if isinstance(array, np.ndarray)}
    return all(np.array_equal(array, getattr(other, name), equal_nan=True) for name, array in arrays.items())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("form", ["top_k", "draws"])
def test_rows_are_those_of_the_kernel_one_token_earlier(cache: str, side: Side, form: Any, temperature: float) -> None:
    rows = RowForm(form, temperature, 13 if form == "top_k" else 19, with_untaught=True)
    reader = opened(cache, side(), rows)
    packed = [[0, 44], [3], [47, 5, 9]]
    batch = reader.read_rows(packed)
    for r, row in enumerate(packed):
        start = 0
        for number in row:
            text, targets = by_hand(cache, number, other_tokenizer(), temperature, form == "draws")
            span = slice(start, start + len(text.ids_J))
            np.testing.assert_array_equal(batch.input_ids[r, span], text.ids_J)
            np.testing.assert_array_equal(batch.position_ids[r, span], np.arange(len(text.ids_J)))
            np.testing.assert_array_equal(batch.loss_mask[r, span], text.loss_mask_J)
            weights = np.exp(batch.logprobs[r, span].astype(np.float64) / temperature)[:-1]
            learned = text.loss_mask_J[:-1]
            np.testing.assert_allclose(weights[learned], targets.weights_JE[1:][learned], rtol=2e-6)
            assert not weights[~learned].any()
            listed = weights > 0
            np.testing.assert_array_equal(batch.ids[r, span][:-1][listed], targets.ids_JE[1:][listed])
            start = span.stop
        assert not batch.attention_mask[r, start:].any()
        assert not batch.loss_mask[r, start:].any()
        assert np.isneginf(batch.logprobs[r, start:]).all()
        assert batch.attention_mask[r, :start].all()


def test_the_target_has_the_kernels_weights_and_its_rest_and_is_0_without_a_teacher(cache: str, side: Side) -> None:
    reader = opened(cache, side())
    rows = teacher_rows(to_tensors(reader.read_rows([[46]]), packed=False))
    text, targets = by_hand(cache, 46, other_tokenizer())
    learned = np.flatnonzero(text.loss_mask_J) + 1
    taught = np.isin(targets.kind_J[learned], TAUGHT)
    assert 0 < taught.sum() < len(taught)
    size = reader.manifest.tokenizer.vocab_size
    target = stored_target(rows, reader.manifest.capture, 1.0, size)
    assert target.rest_N is not None
    weights_NV = torch.zeros(len(learned), size).scatter_add_(1, target.ids_NK, target.weights_NK).numpy()
    wanted_NV = np.zeros_like(weights_NV, np.float64)
    np.add.at(wanted_NV, (np.arange(len(learned))[:, None], targets.ids_JE[learned]), targets.weights_JE[learned])
    np.testing.assert_allclose(weights_NV[taught], wanted_NV[taught], atol=1e-6)
    np.testing.assert_allclose(target.rest_N.numpy()[taught], targets.rest_J[learned][taught], atol=1e-6)
    logits_NV = torch.randn(len(learned), size)
    loss_N, gradient_NV = tla_(logits_NV.clone(), target, 1.0)
    assert loss_N[~taught].abs().max() < 1e-6
    assert gradient_NV[~taught].abs().max() < 1e-6
    assert gradient_NV[taught].abs().amax(dim=1).min() > 1e-3


def test_final_states_stand_where_a_row_is_a_whole_distribution(tmp_path: Path, side: Side) -> None:
    """Mapped to the student's tokens each has at least the mass that its stored entries have there."""
    final = {"dtype": "bfloat16"}
    cache = str(write_cache_of_texts(tmp_path / "in", tmp_path / "cache", seed=1, final=final, draws=None))
    reader = opened(cache, side(), RowForm("final", 1.0, 13, with_untaught=True))
    packed = [[0, 44], [47, 5, 9], [3]]
    batch = reader.read_rows(packed)
    rows, head = batch.side["final"], reader.read_head()
    assert batch.dense is not None
    assert {*batch.dense.ravel().tolist()} == {0, 1, 2}
    np.testing.assert_array_equal(np.flatnonzero(batch.dense), rows.batch_row * batch.dense.shape[1] + rows.column)
    arrays = (torch.from_numpy(getattr(rows, name)) for name in ("values", "scales", "outlier_index", "outliers"))
    settings = reader.manifest.capture.final
    assert settings is not None
    p_NU = head.logits(dequantise(*arrays, settings)[:, 0]).softmax(dim=1)
    size = reader.manifest.tokenizer.vocab_size
    maps = [TokenMap.of(whole_V, len(head.weight_VD), size) for whole_V in reader.whole_tokens]
    for n, (r, c) in enumerate(zip(rows.batch_row, rows.column, strict=True)):
        p_V = maps[batch.dense[r, c] - 1].sums(p_NU[n : n + 1])[0].numpy()
        listed = batch.logprobs[r, c] > -np.inf
        weights = np.exp(batch.logprobs[r, c][listed])
        assert (p_V[batch.ids[r, c][listed]] > weights - 0.01).all()
        assert p_V.sum() == pytest.approx(1, abs=1e-5)
    assert batch.dense[~batch.loss_mask].max() == 0
    assert 0.3 < (batch.dense > 0).sum() / batch.loss_mask.sum() < 0.9


def test_rows_without_a_teacher_count_for_hard_labels_only(cache: str, side: Side) -> None:
    with_all, taught = opened(cache, side()).read_rows([[46]]), opened(cache, side(), TAUGHT_ONLY).read_rows([[46]])
    has_teacher = with_all.logprobs[..., 0] > -np.inf
    np.testing.assert_array_equal(taught.loss_mask, with_all.loss_mask & has_teacher)
    assert 0 < taught.loss_mask.sum() < with_all.loss_mask.sum()


def test_pieces_are_those_of_the_kernel_one_token_earlier(cache: str, side: Side) -> None:
    rows = ENTRIES._replace(with_pieces=True)
    batch, cut = (opened(cache, side(max_tokens=most), rows).read_rows([[0, 46], [3]]) for most in (None, 20))
    assert opened(cache, side()).read_rows([[3]]).pieces is None
    reader = CacheReader(cache)
    retarget = Retargeter(read_vocabulary(Storage(cache), reader.manifest), StudentTokenizer(other_tokenizer()))
    for r, row in enumerate(([0, 46], [3])):
        start = start_of_cut = 0
        for number in row:
            tokens, logits = reader.read_tokens(number), reader.read_logits(number)
            text = retarget.read(tokens, chat_of(tokens, ""))
            assert text is not None
            wanted = retarget.pieces(teacher_tokens(tokens, logits, 0, 1.0), text, logits)
            assert (wanted.tokens_J > 1).any()
            n_tokens, n_cut = len(text.ids_J), min(20, len(text.ids_J))
            for of_rows, size, first in ((batch, n_tokens, start), (cut, n_cut, start_of_cut)):
                assert of_rows.pieces is not None
                span = slice(first, first + size - 1)
                np.testing.assert_array_equal(of_rows.pieces.tokens[r, span], wanted.tokens_J[1:size])
                np.testing.assert_array_equal(
                    of_rows.pieces.logprob[r, span], wanted.logprob_J[1:size].astype(np.float32)
                )
            start, start_of_cut = start + n_tokens, start_of_cut + n_cut
        assert batch.pieces is not None
        assert not batch.pieces.tokens[r, start:].any()
    tensors = to_tensors(batch, packed=True)
    kept_N = teacher_rows(tensors).piece_tokens_N
    assert kept_N is not None
    assert 0 < (kept_N > 0).sum() <= (batch.pieces.tokens[batch.loss_mask] > 0).sum()


def test_lengths_are_the_students_and_kept_texts_spare_tokenising(
    cache: str, side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, kept = opened(cache, side()), opened(cache, side(kept=tmp_path / "kept"))
    n_shards = len(plain.shard_sizes)
    assert n_shards > 2
    rows = [[number] for number in range(int(plain.shard_sizes.sum()))]
    wanted = plain.read_rows(rows)
    lengths = [length for shard in range(n_shards) for length in plain.index(shard).num_tokens]
    assert lengths == wanted.attention_mask.sum(axis=1).tolist()
    assert lengths != CacheReader(cache).num_tokens.tolist()
    assert same(kept.read_rows(rows), wanted)
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == n_shards
    again = pickle.loads(pickle.dumps(kept))
    with monkeypatch.context() as patched:
        patched.setattr(Retargeter, "read", None)
        assert [n for shard in range(n_shards) for n in again.index(shard).num_tokens] == lengths
        assert same(again.read_rows(rows), wanted)


def test_a_damaged_kept_text_is_made_again(cache: str, side: Side, tmp_path: Path) -> None:
    wanted = opened(cache, side()).read_rows([[0, 1]])
    for place in (0.5, 0.7):
        opened(cache, side(kept=tmp_path / "kept")).read_rows([[0, 1]])
        (file,) = (tmp_path / "kept").iterdir()
        before = file.read_bytes()
        at = int(place * len(before))
        file.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        assert same(opened(cache, side(kept=tmp_path / "kept")).read_rows([[0, 1]]), wanted)
        assert file.read_bytes() == before
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(before[: len(before) // 2])
    assert same(opened(cache, side(kept=tmp_path / "kept")).read_rows([[0, 1]]), wanted)


@pytest.mark.parametrize("keep", [False, True])
def test_a_damaged_sample_is_reported_where_it_is_read(cache: str, side: Side, tmp_path: Path, keep: bool) -> None:
    """Not where lengths are asked for, so that a run can skip it and read all others; nothing of its shard is kept."""
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    index = CacheReader(cache).index(1)
    member = index.signals["tokens"]
    with (copy / f"{index.name}.tokens.tar").open("r+b") as file:
        file.seek(member.offsets[2] + member.sizes[2] // 2)
        file.write(b"damage")
    kept = tmp_path / "kept" if keep else None
    sound, damaged = opened(cache, side()), opened(str(copy), side(kept=kept))
    wanted = sound.index(1).num_tokens
    wanted[2] = 1
    assert damaged.index(1).num_tokens == wanted
    first = int(sound.shard_sizes[0])
    assert same(damaged.read_rows([[first + 1], [first + 3]]), sound.read_rows([[first + 1], [first + 3]]))
    with pytest.raises(CorruptCacheError, match=f"sample {index.keys[2]}"):
        damaged.read_rows([[first + 2]])
    assert damaged.index(0).num_tokens == sound.index(0).num_tokens
    assert kept is None or len(list(kept.iterdir())) == 1


def test_a_folder_that_cannot_keep_texts_is_named(
    cache: str, side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for kept in (tmp_path / "file", tmp_path / "file/folder"):
        with pytest.raises(
            UserError, match=rf"^data\.retarget_cache: {kept}: texts cannot be written: .*leave it out$"
        ):
            opened(cache, side(kept=kept)).read_rows([[0]])

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trainer.data.kept_texts.os.replace", full)
    reader = opened(cache, side(kept=tmp_path / "kept"))
    with pytest.raises(UserError, match="No space left on device"):
        reader.read_rows([[0]])
    assert not list((tmp_path / "kept").iterdir())


def test_texts_are_kept_by_the_vocabulary_too(cache: str, side: Side, tmp_path: Path) -> None:
    """It says which of the teacher's tokens stop a text, and `cache-tools upgrade` may write another one."""
    kept = tmp_path / "kept"
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    opened(str(copy), side(kept=kept)).read_rows([[0]])
    storage, manifest = Storage(str(copy)), CacheReader(cache).manifest
    found = read_vocabulary(storage, manifest)
    entry = write_vocabulary(found._replace(is_stop_V=np.zeros_like(found.is_stop_V)), storage)
    changed = manifest.model_copy(update={"vocabulary": entry, "sha256": ""}).sealed()
    storage.write("manifest.json", changed.to_json().encode())
    opened(str(copy), side(kept=kept)).read_rows([[0]])
    assert len(list(kept.iterdir())) == 2


def test_another_tokenizer_does_not_read_what_was_kept_for_one(cache: str, side: Side, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    fewer = other_tokenizer(MERGES[:2])
    opened(cache, side(kept=kept)).read_rows([[0]])
    found = opened(cache, side(fewer, kept=kept)).read_rows([[0]])
    np.testing.assert_array_equal(found.input_ids[0], by_hand(cache, 0, fewer).text.ids_J)
    assert len(list(kept.iterdir())) == 2


def test_a_cut_sample_is_the_beginning_of_the_whole(cache: str, side: Side) -> None:
    whole, cut = opened(cache, side()).read_rows([[46]]), opened(cache, side(max_tokens=20)).read_rows([[46]])
    assert cut.input_ids.shape[1] == 20 < whole.input_ids.shape[1]
    for name in ("input_ids", "ids", "loss_mask"):
        np.testing.assert_array_equal(getattr(cut, name)[:, :19], getattr(whole, name)[:, :19])
    np.testing.assert_array_equal(cut.logprobs[:, :19], whole.logprobs[:, :19])
    assert not cut.loss_mask[0, 19]
    assert max(opened(cache, side(max_tokens=20)).index(0).num_tokens) == 20


def test_chats_that_the_students_template_refuses_are_left_out(
    cache: str, side: Side, caplog: pytest.LogCaptureFixture
) -> None:
    reader = opened(cache, side(other_tokenizer(template=NO_SYSTEM)))
    samples = range(40, 48)
    found = reader.read_rows([[number] for number in samples])
    assert found.attention_mask.sum(axis=1).tolist().count(1) == 4
    assert (found.loss_mask.sum(axis=1) == 0).sum() == 4
    assert [record.message for record in caplog.records if "left out" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1


def test_caches_of_the_students_own_tokenizer_have_the_same_weights_as_ever(cache: str, side: Side) -> None:
    rows = RowForm("draws", 3.0, 25, with_untaught=False)
    reader = open_for_student(cache, ("tokens", "logits"), side=side(tiny_tokenizer()), rows=rows)
    plain = CacheReader(cache, ("tokens", "logits", "draws"))
    found, wanted = reader.read_rows([[0, 44], [3]]), plain.read_rows([[0, 44], [3]])
    np.testing.assert_array_equal(found.input_ids, wanted.input_ids)
    np.testing.assert_array_equal(found.loss_mask, wanted.loss_mask)
    assert found.ids.shape[2] == 25
    p = np.exp(wanted.logprobs.astype(np.float64) / 3 - wanted.log_partition[..., [1]])
    weights = np.exp(found.logprobs.astype(np.float64) / 3)
    np.testing.assert_allclose(weights[..., :12], p, rtol=2e-6)
    tail = 1 - p.sum(axis=2)
    stored = wanted.logprobs[..., 0] > -np.inf
    np.testing.assert_allclose(weights[..., 12:18][stored], np.repeat(tail[stored][:, None] / 6, 6, axis=1), rtol=1e-5)
    assert not weights[..., 18:].any()
    assert not weights[~stored].any()


def test_entries_that_a_row_can_have(cache: str) -> None:
    capture = CacheReader(cache).manifest.capture
    assert (entries_of(capture, "top_k"), entries_of(capture, "draws")) == (13, 19)


def test_a_cache_without_vocabulary_names_the_command_that_adds_it(side: Side) -> None:
    with pytest.raises(UserError, match=r"no vocabulary\.arrow \(format 1\.1\).*add it with `cache-tools upgrade`"):
        opened(str(BUNDLED), side())


def displaced(logits: LogitsSample, by: int, cut: int) -> LogitsSample:
    keep = len(logits.positions) - cut
    arrays = {name: np.roll(array, by, axis=0)[:keep] for name, array in vars(logits).items() if name not in FIXED}
    return replace(logits, positions=logits.positions[:keep], **arrays)


@pytest.mark.parametrize(("by", "cut"), [(1, 0), (-1, 0), (0, 2)])
def test_rows_at_wrong_tokens_stop_the_first_read(
    cache: str, side: Side, monkeypatch: pytest.MonkeyPatch, by: int, cut: int
) -> None:
    read = CacheReader.read_logits
    monkeypatch.setattr(CacheReader, "read_logits", lambda self, number: displaced(read(self, number), by, cut))
    with pytest.raises(UserError, match=r"shard-000000\.logits\.tar: sample \w+.*`cache-tools verify .*cache`"):
        opened(cache, side()).read_rows([[0], [1], [2], [3]])


def test_rows_that_are_missing_later_are_corrupt(cache: str, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, read = opened(cache, side()), CacheReader.read_logits
    for _ in range(FIRST):
        reader.read_rows([[0]])
    monkeypatch.setattr(CacheReader, "read_logits", lambda self, number: displaced(read(self, number), 0, 1))
    with pytest.raises(CorruptCacheError, match=r"logits\.tar: sample \w+: lacks rows that count; `cache-tools verify"):
        reader.read_rows([[0]])


def test_a_vocabulary_of_another_teacher_stops_the_first_read(
    cache: str, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rolled(storage: Storage, manifest: Manifest) -> Vocabulary:
        found = read_vocabulary(storage, manifest)
        table = TokenTable.of([found.table.token((i + 7) % 384) for i in range(384)])
        return found._replace(table=table)

    monkeypatch.setattr("trainer.data.retargeted_reader.read_vocabulary", rolled)
    with pytest.raises(
        UserError, match=r"tokens\.tar: sample \w+: most tokens of vocabulary\.arrow do not spell the text"
    ):
        opened(cache, side()).read_rows([[0]])


def test_mass_of_a_padded_embedding_belongs_to_no_token(side: Side, tmp_path: Path) -> None:
    """Ids after the tokenizer's last: the kernel is compiled without checks of bounds."""
    cache = str(write_cache_of_texts(tmp_path / "in", tmp_path / "cache", vocab_size=4000, draws={"n": 6}))
    plain = CacheReader(cache, ("tokens", "logits", "draws"))
    for rows in (ENTRIES, RowForm("draws", 1.0, 19, with_untaught=True)):
        batch = opened(cache, side(), rows).read_rows([[3]])
        weights = np.exp(batch.logprobs[0].astype(np.float64))
        assert 0 < weights.sum() < 0.9 * np.exp(plain.read_rows([[3]]).logprobs.astype(np.float64)).sum()
        assert batch.ids.max() < len(other_tokenizer())
        assert np.isfinite(weights).all()
        assert (weights.sum(axis=1) <= 1 + 1e-6).all()


def test_a_student_to_whom_nothing_is_taught_is_told(cache: str, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.retargeted_reader.LEAST_ROWS", 40)
    changes = other_tokenizer()
    changes.backend_tokenizer.normalizer = normalizers.Replace(Regex("[^\\n]"), "~~")
    refuses = other_tokenizer(template="{{ raise_exception('no') }}")
    for tokenizer, samples in ((changes, range(20)), (refuses, range(40, 48))):
        reader = opened(cache, side(tokenizer))
        with pytest.raises(UserError, match=r"none of the first \d\d rows teaches a token.*`cache-tools align .*`"):
            reader.read_rows([[number] for number in samples])
    opened(cache, side(refuses)).read_rows([[0], *([number] for number in range(40, 48))])


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"student: .* has no tokenizer, which data\.align needs"):
        student_side(tmp_path, "student", False, None)


def test_the_digest_knows_what_changes_a_students_tokens(side: Side) -> None:
    first, same_one, other, template = (
        side(), side(), side(other_tokenizer(MERGES[:4])), side(other_tokenizer(template=NO_SYSTEM))
    )  # fmt: skip
    assert first.digest == same_one.digest
    assert len({first.digest, other.digest, template.digest}) == 3
