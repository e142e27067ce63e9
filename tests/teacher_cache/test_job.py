import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from schemas.cache_config import CacheConfig, CorpusConfig, SourceConfig
from schemas.derivation import Selection
from schemas.errors import CorruptCacheError, UserError
from schemas.load import validate
from support.models import VOCAB_SIZE, write_random_teacher, write_successor_teacher, write_text_corpus
from support.workspace import cache_tree
from teacher_cache import job, plan, writing
from teacher_cache.claims import RUNNING
from teacher_cache.plan import load_or_make_plan
from teacher_cache.shards.lease import Lease, acquire_part
from teacher_cache.shards.new_place import UNDER_WAY
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.signals.hidden.capture import to_floats
from teacher_cache.teacher import older_fingerprint
from tools.checking.verify import verify
from tools.sharing.subset import choose, open_source, write_subset


def make_config(teacher: Path, corpus: Path, output: Path, **changes: object) -> CacheConfig:
    capture = {"logits": {"k": 16, "temperatures": [1.0, 3.0]}, "draws": None}
    tree = cache_tree(teacher, corpus, output, tokens_per_shard=300, **{"capture": capture, **changes})
    return validate(CacheConfig, tree, "test")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_corpus(tmp_path_factory.mktemp("corpus"))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("positions", ["all", "loss_mask"])
def test_row_t_is_the_distribution_after_token_t(tmp_path: Path, corpus: Path, positions: str) -> None:
    folder, logprobs_VV = write_successor_teacher(tmp_path / "teacher")
    capture = {"logits": {"k": 16, "positions": positions}, "draws": None}
    summary = job.run(make_config(folder, corpus, tmp_path / "cache", capture=capture))
    reader = CacheReader(str(tmp_path / "cache"))
    entropies_V, read = -(np.exp(logprobs_VV) * logprobs_VV).sum(axis=1), []
    for position in range(len(reader)):
        ids = reader.read_tokens(position).input_ids.astype(int)
        logits = reader.read_logits(position)
        n_rows = len(ids) if positions == "all" else len(ids) - 1
        assert logits.positions.tolist() == list(range(n_rows))
        assert np.array_equal(logits.ids[:, 0], (ids[:n_rows] + 1) % VOCAB_SIZE)
        expected = logprobs_VV[ids[:n_rows, None], logits.ids]
        assert np.abs(logits.logprobs - expected).max() <= 1 / 32 + 1e-5
        realised = logprobs_VV[ids[:-1], ids[1:]]
        assert np.abs(logits.next_logprob[: len(ids) - 1] - realised).max() <= 1 / 2048 + 1e-5
        assert np.isnan(logits.next_logprob[len(ids) - 1 :]).all()
        softened = np.log(np.exp(logprobs_VV[ids[:n_rows]] / 3).sum(axis=1))
        assert np.abs(logits.log_partition[:, 1] - softened).max() <= 1 / 2048 + 1e-5
        assert not logits.log_partition[:, 0].any()
        read.append(ids[:n_rows])
    assert summary.mean_entropy == pytest.approx(entropies_V[np.concatenate(read)].mean(), abs=1e-5), "not a bound"


def test_a_uniform_teacher_has_the_entropy_log_v(
    tmp_path: Path, teacher: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From 16 entries per row and one bucket for the rest, the entropy would be 0.2 nats."""
    folder = write_random_teacher(tmp_path / "uniform")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 1e-4
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.INFO):
        summary = job.run(make_config(folder, corpus, tmp_path / "cache"))
    assert summary.mean_entropy == pytest.approx(np.log(VOCAB_SIZE), abs=1e-4)
    assert f"entropy {np.log(VOCAB_SIZE):.2f} nats" in caplog.text
    assert job.run(make_config(folder, corpus, tmp_path / "cache")).mean_entropy is None, "nothing was scored"


def test_of_a_chat_only_what_the_assistant_writes_is_stored(tmp_path: Path, teacher: Path) -> None:
    """The rows in the loss mask, equal to those of a cache of all rows."""
    chats = [
        [("user", f"{n} + {n}?"), ("assistant", f"def f(x): {2 * n}"), ("user", "again"), ("assistant", "return x")]
        for n in range(4)
    ]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in chat]}) for chat in chats]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    corpus = CorpusConfig(sources=[SourceConfig(path=str(tmp_path / "chats.jsonl"), format="jsonl")], max_tokens=200)
    readers = []
    for positions in ("loss_mask", "all"):
        capture = {"logits": {"k": 16, "positions": positions}, "draws": {"n": 5}}
        config = make_config(teacher, tmp_path, tmp_path / positions, capture=capture)
        config = config.model_copy(update={"corpus": corpus})
        job.run(config)
        assert verify(config.output.path).problems == []
        readers.append(CacheReader(config.output.path, ("tokens", "logits", "draws")))
    some, whole = readers
    assert some.keys == whole.keys
    assert len(some) == 4
    for position in range(len(some)):
        mask = some.read_tokens(position).loss_mask
        rows = np.flatnonzero(mask)
        assert (np.diff(rows) > 1).any(), "two replies, with a question between them"
        assert rows[0] > 0
        one, other = some.read_logits(position), whole.read_logits(position)
        assert one.positions.tolist() == some.read_draws(position).positions.tolist() == rows.tolist()
        assert other.positions.tolist() == whole.read_draws(position).positions.tolist() == list(range(len(mask)))
        for name in ("counts", "ids", "logprobs", "next_logprob", "log_partition"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name)[rows], err_msg=name)


def test_a_second_run_scores_nothing_and_writes_no_file(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    config = make_config(teacher, corpus, tmp_path / "cache")
    first = job.run(config)
    before = snapshot(tmp_path / "cache")
    second = job.run(config)
    assert first.complete
    assert second.units_scored == 0
    assert second.units_skipped == first.units_scored > 1
    assert second.manifest_digest == first.manifest_digest
    assert snapshot(tmp_path / "cache") == before


def test_what_a_worker_killed_at_the_end_left_is_removed(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    """The cache is complete already."""
    config = make_config(teacher, corpus, tmp_path / "cache")
    job.run(config)
    before = sorted(path.name for path in (tmp_path / "cache").iterdir())
    for name in (".lease-manifest.json", ".lease-shard-000000.json", ".tmp-w0-0123456789ab-shard-000000.logits.tar"):
        (tmp_path / "cache" / name).write_bytes(b"")
    assert job.run(config).complete
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == before


def test_workers_share_the_units_and_the_result_is_the_same(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    alone = make_config(teacher, corpus, tmp_path / "alone")
    shared = make_config(teacher, corpus, tmp_path / "shared")
    job.run(alone)
    first = job.run(shared, job.Worker(1, 2))
    assert not first.complete
    second = job.run(shared, job.Worker(0, 2))
    assert second.complete
    a, b = CacheReader(str(tmp_path / "alone")), CacheReader(str(tmp_path / "shared"))
    assert a.keys == b.keys
    for position in range(len(a)):
        one, other = a.read_logits(position), b.read_logits(position)
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.logprobs, other.logprobs)


def test_processes_of_a_queue_do_all_units_between_them(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    """It does the others, waits for the one that another process has, and does it when that one gives it up."""
    whole = job.run(make_config(teacher, corpus, tmp_path / "alone"))
    config = make_config(teacher, corpus, tmp_path / "shared")
    load_or_make_plan(config, Storage(config.output.path))

    def give_up(lease: Lease) -> int:
        deadline = time.monotonic() + 60
        while len(marks(tmp_path / "shared")) < whole.units_scored - 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        done = len(marks(tmp_path / "shared"))
        lease.release()
        return done

    with ThreadPoolExecutor() as threads:
        held = acquire_part(Storage(config.output.path), "shard-000000", RUNNING)
        before = threads.submit(give_up, held)
        summary = job.run(config, job.Worker(queue=True))
    assert before.result() == whole.units_scored - 1 > 1
    assert summary.complete
    assert summary.units_scored == whole.units_scored
    assert marks(tmp_path / "shared") == marks(tmp_path / "alone")
    assert CacheReader(str(tmp_path / "shared")).keys == CacheReader(str(tmp_path / "alone")).keys


def marks(place: Path) -> list[str]:
    return sorted(path.name for path in place.glob("shard-*.json"))


def test_nucleus_rows_are_ragged_and_reach_the_mass(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    capture = {"logits": {"policy": "nucleus", "k": 64, "mass": 0.5}}
    job.run(make_config(teacher, corpus, tmp_path / "cache", capture=capture))
    logits = CacheReader(str(tmp_path / "cache")).read_logits(0)
    assert len(set(logits.counts.tolist())) > 1
    mass = np.exp(logits.logprobs).sum(axis=1)
    full = logits.counts == 64
    assert (mass[~full] >= 0.5 - 0.02).all()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"capture": {"logits": {"k": 8}, "draws": None}}, "capture.logits.k: 16 in the cache, 8 now"),
        ({"codec": {"logprob_steps_per_nat": 32}}, "codec.logprob_steps_per_nat: 16 in the cache, 32 now"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, teacher: Path, corpus: Path, changes: dict, key: str
) -> None:
    job.run(make_config(teacher, corpus, tmp_path / "cache"))
    with pytest.raises(UserError, match=key):
        job.run(make_config(teacher, corpus, tmp_path / "cache", **changes))


def test_another_corpus_and_another_teacher_are_refused(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    job.run(make_config(teacher, corpus, tmp_path / "cache"))
    other_corpus = write_text_corpus(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"corpus\.sources \(content\)"):
        job.run(make_config(teacher, other_corpus, tmp_path / "cache"))
    other_teacher = write_random_teacher(tmp_path / "teacher", seed=1)
    with pytest.raises(UserError, match=r"teacher\.fingerprint"):
        job.run(make_config(other_teacher, corpus, tmp_path / "cache"))


def test_the_corpus_may_move(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    first = job.run(make_config(teacher, corpus, tmp_path / "cache"))
    moved = tmp_path / corpus.name
    moved.mkdir()
    for file in corpus.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    second = job.run(make_config(teacher, moved, tmp_path / "cache"))
    assert second.units_scored == 0
    assert second.manifest_digest == first.manifest_digest


def test_a_lost_manifest_does_not_cost_the_shards(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    config = make_config(teacher, corpus, tmp_path / "cache")
    job.run(config)
    (tmp_path / "cache/manifest.json").unlink()
    before = snapshot(tmp_path / "cache")
    with pytest.raises(UserError, match="restore it"):
        job.run(config)
    assert snapshot(tmp_path / "cache") == before


def test_garbage_is_removed_and_foreign_files_are_not(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    garbage = [folder / "shard-000099.logits.tar", folder / ".tmp-w0-shard-000001.logits.tar", folder / UNDER_WAY]
    for path in [*garbage, folder / "notes.txt", folder / ".tmp-a b"]:
        path.write_text("left over")
    job.run(make_config(teacher, corpus, folder))
    assert not any(path.exists() for path in garbage)
    assert (folder / "notes.txt").exists()
    assert (folder / ".tmp-a b").exists()


def test_a_plan_leaves_foreign_files_alone(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    """A model's output head in the folder has the same file name as a cache's."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "head.safetensors").write_text("somebody's")
    with pytest.raises(UserError, match=r"cache/head\.safetensors: exists without a manifest"):
        job.run(make_config(teacher, corpus, folder))
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("head.safetensors", "somebody's")]


def test_a_damaged_plan_is_found_before_scoring(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    config = make_config(teacher, corpus, tmp_path / "cache")
    job.run(config, job.Worker(1, 2))
    path = tmp_path / "cache/shard-000000.tokens.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCacheError, match=r"shard-000000\.tokens\.tar: sha256"):
        job.run(config)
    assert CacheReader(str(tmp_path / "cache")).read_logits(0) is not None


def test_k_above_the_vocabulary_is_refused_before_anything_is_written(
    tmp_path: Path, teacher: Path, corpus: Path
) -> None:
    config = make_config(teacher, corpus, tmp_path / "cache", capture={"logits": {"k": VOCAB_SIZE + 1}})
    with pytest.raises(UserError, match=r"capture\.logits\.k: 385"):
        job.run(config)
    assert not (tmp_path / "cache").exists()


def test_settings_beyond_the_readers_limits_are_refused(tmp_path: Path, corpus: Path) -> None:
    teacher = write_random_teacher(tmp_path / "teacher", max_position_embeddings=2**25)
    config = make_config(teacher, corpus, tmp_path / "cache", max_tokens=2**24)
    with pytest.raises(UserError, match=r"capture: 136 bytes a row \(in memory\) times corpus\.max_tokens 16777216"):
        job.run(config)
    assert not (tmp_path / "cache").exists()


def test_an_empty_corpus_leaves_nothing_behind(tmp_path: Path, teacher: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/empty.txt").write_text("")
    with pytest.raises(UserError, match="corpus is empty"):
        job.run(make_config(teacher, tmp_path / "corpus", tmp_path / "cache"))
    assert not (tmp_path / "cache").exists() or not any((tmp_path / "cache").iterdir())


def test_more_units_than_a_listing_may_have_are_refused(
    tmp_path: Path, teacher: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(teacher, corpus, tmp_path / "cache")
    units = len(load_or_make_plan(config, Storage(config.output.path)).units)
    monkeypatch.setattr(plan, "most_units", lambda signals: units)
    config = make_config(teacher, corpus, tmp_path / "as many")
    assert len(load_or_make_plan(config, Storage(config.output.path)).units) == units
    monkeypatch.setattr(plan, "most_units", lambda signals: units - 1)
    config = make_config(teacher, corpus, tmp_path / "too many")
    with pytest.raises(UserError, match=rf"output\.tokens_per_shard: .*more than {units - 1} shards"):
        job.run(config)
    assert not any((tmp_path / "too many").glob("*"))


def test_k_equal_to_the_vocabulary_stores_whole_rows(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    job.run(make_config(teacher, corpus, tmp_path / "cache", capture={"logits": {"k": VOCAB_SIZE}}))
    logits = CacheReader(str(tmp_path / "cache")).read_logits(0)
    assert np.array_equal(np.sort(logits.ids, axis=1), np.tile(np.arange(VOCAB_SIZE), (len(logits.ids), 1)))


def test_summary_is_plain_json(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    summary = job.run(make_config(teacher, corpus, tmp_path / "cache"))
    facts = json.loads(json.dumps(job.summary_dict(summary)))
    assert facts["tokens"] == facts["cache_tokens"] == int(CacheReader(str(tmp_path / "cache")).num_tokens.sum())
    assert 0 < facts["mean_entropy"] < np.log(VOCAB_SIZE)


@pytest.mark.parametrize("text", ["1", "2/2", "a/b", "-1/2", "0/0"])
def test_bad_worker_shares_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="RANK/WORLD"):
        job.parse_worker(text)


def test_a_worker_of_a_queue_has_no_share() -> None:
    assert job.parse_worker(None, queue=True) == job.Worker(0, 1, queue=True)
    with pytest.raises(UserError, match="--worker 0/4: with --queue a worker has no share"):
        job.parse_worker("0/4", queue=True)


def test_the_configured_number_of_threads_encodes(
    tmp_path: Path, teacher: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(teacher, corpus, tmp_path / "cache")
    output = config.output.model_copy(update={"encode_threads": 3})
    seen: list[int] = []
    monkeypatch.setattr(writing, "map_ahead", lambda encode, items, n: seen.append(n) or map(encode, items))
    assert job.run(config.model_copy(update={"output": output})).complete
    assert set(seen) == {3}


def test_all_signals_are_stored_the_same_however_the_engine_is_called(
    tmp_path: Path, teacher: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = {"hidden": {"layers": [1, 2], "positions": "all"}, "attention": {"heads": 1, "keys": 4}}
    readers = []
    for name, batches in (("one", 1000), ("many", 0)):
        monkeypatch.setattr(job, "BATCHES_PER_CALL", batches)
        config = make_config(teacher, corpus, tmp_path / name, capture=capture)
        assert job.run(config).complete
        readers.append(CacheReader(config.output.path, ("tokens", "logits", "hidden", "attention")))
        assert verify(config.output.path).problems == []
    one, many = readers
    assert one.keys == many.keys
    stored: Any = one.manifest.capture.hidden
    for position in range(len(one)):
        hidden, attention = one.read_hidden(position), one.read_attention(position)
        assert hidden.positions.tolist() == list(range(one.num_tokens[position]))
        states, others = to_floats(hidden, stored), to_floats(many.read_hidden(position), stored)
        assert ((states - others).norm(dim=2) / states.norm(dim=2)).max() < 0.01
        np.testing.assert_allclose(attention.weights, many.read_attention(position).weights, atol=1e-4)
        assert len(attention.positions) > 0


def test_a_cache_with_the_older_fingerprint_of_its_teacher_goes_on(
    tmp_path: Path, teacher: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(teacher, corpus, tmp_path / "cache")
    older = older_fingerprint(config.teacher)
    with monkeypatch.context() as patched:
        patched.setattr("teacher_cache.teacher.stored_settings", lambda _: None)
        patched.setattr("teacher_cache.teacher._fingerprint", lambda *_: older)
        plan = job.load_or_make_plan(config, Storage(config.output.path))
    assert plan.teacher.fingerprint == older
    summary = job.run(config)
    assert summary.complete
    assert CacheReader(config.output.path).manifest.teacher.fingerprint == older
    assert job.run(config).units_scored == 0
    other = write_random_teacher(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"made with other settings: .*teacher\.fingerprint"):
        job.run(make_config(other, corpus, tmp_path / "cache"))


@pytest.mark.parametrize("file", ["logits.tar", "tokens.tar"])
def test_a_missing_committed_file_is_reported(tmp_path: Path, teacher: Path, corpus: Path, file: str) -> None:
    config = make_config(teacher, corpus, tmp_path / "cache")
    job.run(config)
    (tmp_path / "cache" / f"shard-000000.{file}").unlink()
    with pytest.raises(CorruptCacheError, match=rf"shard-000000\.{file}: the file is missing; restore it .*or delete"):
        job.run(config)


def test_a_shard_whose_mark_was_deleted_is_written_again(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    """As the error message about a missing tar advises."""
    config = make_config(teacher, corpus, tmp_path / "cache")
    job.run(config)
    (tmp_path / "cache/shard-000000.logits.tar").unlink()
    (tmp_path / "cache/shard-000000.json").unlink()
    summary = job.run(config)
    assert (summary.units_scored, summary.complete) == (1, True)
    assert verify(config.output.path).problems == []


def test_a_run_cannot_continue_a_part_of_a_cache(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    """It would count as complete, with a third of the configured corpus."""
    config = make_config(teacher, corpus, tmp_path / "whole")
    job.run(config)
    source, manifest = open_source(config.output.path)
    write_subset(choose(source, manifest, Selection(shards=[(0, 0)])), str(tmp_path / "part"))
    with pytest.raises(UserError, match=r"derived from others \(subset\), so a run"):
        job.run(make_config(teacher, corpus, tmp_path / "part"))
