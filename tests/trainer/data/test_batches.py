import errno
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from schemas.errors import CorruptCacheError, UserError
from support.models import tiny_tokenizer
from support.synthetic import random_shards, write_cache
from teacher_cache.records import Pieces
from teacher_cache.tokenizer import describe_tokenizer
from trainer.data.alignment import check_covered
from trainer.data.batches import CacheRows, to_tensors, training_loader
from trainer.data.open_caches import check_vocabulary, open_cache
from trainer.data.order import CacheOrder, Shuffle
from trainer.data.row_plan import RowPlan, plan_rows
from trainer.data.selection import Selection, Subset
from trainer.student.student_tokenizer import check_tokenizer


@pytest.fixture
def plan(cache) -> RowPlan:
    return plan_of(cache)


def plan_of(cache) -> RowPlan:
    order = CacheOrder(Subset(cache, Selection()), Shuffle(0, 1))
    return plan_rows([order], None, global_batch=4, epochs=1, max_steps=6)


def test_batches_are_one_read_each_in_the_plans_order_through_accelerate(cache, plan) -> None:
    loader = training_loader(CacheRows(cache, plan), start=6, batch_rows=2)
    batches = list(Accelerator(cpu=True).prepare(loader))
    assert len(batches) == 9
    assert cache.reads == [plan.rows([r, r + 1]) for r in range(6, 24, 2)]
    expected = cache.read_rows(plan.rows([6, 7]))
    assert torch.equal(batches[0]["input_ids"], torch.from_numpy(expected.input_ids))


def test_position_ids_only_when_packed(cache) -> None:
    rows = cache.read_rows([[0, 1]])
    assert "position_ids" not in to_tensors(rows, packed=False)
    assert to_tensors(rows, packed=True)["position_ids"].dtype == torch.int64


def test_pieces_only_where_they_were_read(cache) -> None:
    rows = cache.read_rows([[0], [1]])
    assert not [name for name in to_tensors(rows, packed=False) if name.startswith("piece")]
    shape = rows.loss_mask.shape
    pieces = Pieces(np.arange(rows.loss_mask.size, dtype=np.int32).reshape(shape), np.full(shape, -1, np.float32))
    batch = to_tensors(replace(rows, pieces=pieces), packed=False)
    assert torch.equal(batch["piece_tokens"], torch.from_numpy(pieces.tokens))
    assert torch.equal(batch["piece_logprob"], torch.from_numpy(pieces.logprob))


def test_rows_that_do_not_count_may_be_missing_and_rows_that_count_may_not(tmp_path) -> None:
    write_cache(str(tmp_path), random_shards([[9, 12, 7]], 61, counting=0.5), 61)
    cache = open_cache(str(tmp_path))
    for rows, packed in (([[0], [1], [2]], False), ([[0, 2], [1]], True)):
        batch = to_tensors(cache.read_rows(rows), packed)
        stored = batch["logprobs"][..., 0] > -torch.inf
        assert torch.equal(stored, batch["loss_mask"]), "only the rows that count are stored"
        assert 0 < stored.sum() < batch["attention_mask"].sum()
        assert torch.isfinite(batch["next_logprob"][stored]).all()
    lacking = cache.read_rows([[0], [1], [2]])
    row, column = np.argwhere(lacking.attention_mask & ~lacking.loss_mask)[0]
    lacking.loss_mask[row, column] = True
    with pytest.raises(CorruptCacheError, match="the logits signal lacks rows of a batch that count"):
        check_covered(lacking)


def test_without_the_logits_signal_no_row_of_it_is_wanted(tmp_path) -> None:
    write_cache(str(tmp_path), random_shards([[9, 12]], 61), 61)
    batch = to_tensors(open_cache(str(tmp_path), ("tokens",)).read_rows([[0], [1]]), packed=False)
    assert batch["loss_mask"].any()
    assert batch["logprobs"].shape[2] == 0


def test_one_row_is_a_batch_of_one(cache, plan) -> None:
    data = CacheRows(cache, plan)
    assert len(data) == 24
    assert data[3]["input_ids"].shape == (1, cache.num_tokens[plan.rows([3])[0][0]])


def test_student_vocabulary_must_cover_the_tokenizer(cache) -> None:
    from transformers import LlamaConfig

    check_vocabulary(cache.manifest, LlamaConfig(vocab_size=61), where="c")
    check_vocabulary(cache.manifest, LlamaConfig(vocab_size=64), where="c")  # padded embeddings
    with pytest.raises(UserError, match=r"^c: the cache's tokenizer has 61 tokens but .* has 60"):
        check_vocabulary(cache.manifest, LlamaConfig(vocab_size=60), where="c")


def test_student_tokenizer_must_be_the_caches(cache, tmp_path) -> None:
    check_tokenizer(cache.manifest, tmp_path, where="c")  # nothing to compare
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    info = describe_tokenizer(tokenizer)
    check_tokenizer(cache.manifest.model_copy(update={"tokenizer": info}), tmp_path, where="c")
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer \w{12}… is not the one the cache c was made with"):
        check_tokenizer(cache.manifest.model_copy(update={"tokenizer": info}), tmp_path, where="c")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
def test_machine_errors_are_not_skipped_as_corrupt_samples(tmp_path, monkeypatch, number: int) -> None:
    write_cache(str(tmp_path), random_shards([[9, 12, 7]], 61), 61)
    cache = open_cache(str(tmp_path))
    data = CacheRows(cache, plan_of(cache), skip_corrupt=True)
    opened = os.open

    def fail(path, *args, **options):
        if str(path).endswith(".tar"):
            raise OSError(number, os.strerror(number), path)
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(UserError, match=os.strerror(number)) as caught:
        data[0]
    assert not isinstance(caught.value, CorruptCacheError)
    monkeypatch.setattr(os, "open", opened)
    assert data[0]["skipped"].tolist() == [0]


def test_empty_and_missing_caches(tmp_path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        open_cache(str(tmp_path / "nowhere"))


def test_incomplete_cache_is_used_with_a_warning(tmp_path, caplog) -> None:
    shards = random_shards([[5, 6], [7]], 61)
    write_cache(str(tmp_path / "none"), shards, 61, commit=0)
    with pytest.raises(UserError, match="no committed samples"):
        open_cache(str(tmp_path / "none"))
    write_cache(str(tmp_path / "one"), shards, 61, commit=1)
    assert open_cache(str(tmp_path / "one")).shard_sizes.tolist() == [2]
    assert "using 1 of 2 shards" in caplog.text
