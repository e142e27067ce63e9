import os
from pathlib import Path

import pytest

from schemas.errors import UserError
from trainer.data.data_state import DataState
from trainer.run.checkpoint import (
    DATA_STATE_FILE,
    MARK_FILE,
    STATE_FILE,
    RunState,
    checkpoint_folders,
    damage,
    find_resume,
    keep_newest,
    names_in,
    new_state,
    remove_checkpoint,
    remove_unused,
    seal,
    settle,
    write_state,
)


@pytest.fixture
def start(make_config) -> RunState:
    return new_state(make_config(), "d" * 64, rows_per_step=4)


def add(output: Path, step: int, state: RunState | None) -> Path:
    folder = output / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "model.safetensors").write_text("x")
    if state is not None:
        write_state(folder, state.model_copy(update={"global_step": step}))
        seal(folder, step, settle(folder, names_in(folder)))
    return folder


def test_the_newest_complete_checkpoint_is_used_and_incomplete_ones_are_removed(
    tmp_path: Path, start: RunState
) -> None:
    add(tmp_path, 2, start)
    newest = add(tmp_path, 10, start)
    torn = add(tmp_path, 12, None)
    (tmp_path / "checkpoint-notes").mkdir()
    assert find_resume(tmp_path, start, resume=True)[0] == newest
    assert find_resume(tmp_path, start, resume=True)[1].global_step == 10
    assert torn.exists(), "looking changes nothing"
    remove_unused(tmp_path, newest)
    assert newest.exists()
    assert not torn.exists()
    assert (tmp_path / "checkpoint-notes").exists()


def test_nothing_to_resume(tmp_path: Path, start: RunState) -> None:
    assert find_resume(tmp_path / "absent", start, resume=True) == (None, start)


def test_starting_over_removes_checkpoints(tmp_path: Path, start: RunState) -> None:
    add(tmp_path, 2, start)
    assert find_resume(tmp_path, start, resume=False) == (None, start)
    remove_unused(tmp_path, None)
    assert checkpoint_folders(tmp_path) == []


def test_changed_cache_is_refused(tmp_path: Path, start: RunState) -> None:
    add(tmp_path, 2, start)
    other = start.model_copy(update={"data": DataState(cache_digest="e" * 64)})
    with pytest.raises(UserError, match=r"manifest digest dddddddddddd…, data.cache now has eeeeeeeeeeee…; set loop"):
        find_resume(tmp_path, other, resume=True)
    assert find_resume(tmp_path, other, resume=False)[0] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"eps": 1.0}}, r"optimizer.eps = 1e-08, the configuration now says 1.0"),
        ({"losses": {"tla": {"temperature": 2.0}}}, r"losses.tla.temperature = 1.0, the configuration now says 2.0"),
        ({"losses": {"asr": {}}}, r"losses.asr = null, the configuration now says {"),
        ({"loop": {"seed": 7}}, r"loop.seed = 0, the configuration now says 7"),
        ({"loop": {"parallel": "fsdp"}}, r'loop.parallel = "ddp", the configuration now says "fsdp"'),
        ({"data": {"packing": True}}, r"data.packing = false, the configuration now says true"),
        ({"data": {"cache": [{"url": "x", "limit": 3}]}}, r'data.shares = .*"limit": null.* now says .*"limit": 3'),
    ],
)
def test_settings_that_would_change_the_run_are_refused(tmp_path, make_config, start, changes, message) -> None:
    add(tmp_path, 2, start)
    with pytest.raises(UserError, match=message):
        find_resume(tmp_path, new_state(make_config(**changes), "d" * 64, 4), resume=True)
    with pytest.raises(UserError, match="rows per step = 4, the configuration now says 8"):
        find_resume(tmp_path, new_state(make_config(), "d" * 64, 8), resume=True)


def test_another_student_is_refused(tmp_path, make_config) -> None:
    add(tmp_path, 2, new_state(make_config(), "d" * 64, 4, student="a" * 64))
    with pytest.raises(UserError, match=r"initial weights had fingerprint aaaaaaaaaaaa…, those .* have bbbbbbbbbbbb…"):
        find_resume(tmp_path, new_state(make_config(), "d" * 64, 4, student="b" * 64), resume=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loop": {"max_steps": 99}}, "loop.max_steps: 99, was 6 at step 2: the schedules of rate"),
        ({"loop": {"save_every": 1}}, "loop.save_every: 1, was 2 at step 2: from the next step on"),
        ({"optimizer": {"lr": 1.0}}, "optimizer.lr: 1.0, was 0.003 at step 2: each step uses the new"),
        ({"loop": {"micro_batch_size": 4, "gradient_accumulation": 1}}, "loop.micro_batch_size: 4, was 2 at step 2"),
        ({"data": {"num_workers": 2}}, "data.num_workers: 2, was 0 at step 2: no effect on results"),
        ({"student": {"checkpoint": "/moved"}, "data": {"cache": "/moved"}}, ""),
    ],
)
def test_permitted_changes_are_logged(tmp_path, make_config, start, caplog, changes, said) -> None:
    folder = add(tmp_path, 2, start)
    now = new_state(make_config(**changes), "d" * 64, 4)
    with caplog.at_level("INFO", "trainer"):
        found, state = find_resume(tmp_path, now, resume=True)
    assert found == folder
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)
    assert state.settings == now.settings, "the next checkpoint has the new ones"


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path, start: RunState) -> None:
    for step in (2, 4, 6, 8, 10):
        add(tmp_path, step, start)
    keep_newest(tmp_path, 2, best_step=4)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["checkpoint-10", "checkpoint-8", "checkpoint-4"]
    keep_newest(tmp_path, 1, best_step=None)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["checkpoint-10"]


def test_a_kill_while_removing_leaves_an_incomplete_checkpoint(tmp_path: Path, start: RunState, monkeypatch) -> None:
    folder = add(tmp_path, 2, start)
    monkeypatch.setattr("shutil.rmtree", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        remove_checkpoint(folder)
    assert not (folder / MARK_FILE).exists()


def test_damaged_complete_checkpoints_do_not_cause_a_fresh_start(tmp_path: Path, start: RunState) -> None:
    (add(tmp_path, 2, start) / DATA_STATE_FILE).unlink()
    with pytest.raises(
        UserError, match=rf"checkpoint-2: no checkpoint is complete \({DATA_STATE_FILE}: missing\); restore"
    ):
        find_resume(tmp_path, start, resume=True)


def test_checkpoints_from_before_marks_existed_are_not_dropped(tmp_path: Path, start: RunState) -> None:
    folder = add(tmp_path, 2, start)
    (folder / MARK_FILE).unlink()
    (folder / STATE_FILE).write_text('{"stopped_early": false}')
    with pytest.raises(UserError, match=rf"no checkpoint is complete \({MARK_FILE}: missing"):
        find_resume(tmp_path, start, resume=True)


def test_another_validation_cache_resets_early_stopping(tmp_path: Path, make_config) -> None:
    config = make_config(loop={"early_stopping_patience": 2})
    before = new_state(config, "d" * 64, 4, validation="a")
    before.best_kl, before.best_step, before.stale_validations = 0.5, 2, 1
    add(tmp_path, 2, before)
    for validation, best in (("a", 0.5), ("b", None)):
        _, state = find_resume(tmp_path, new_state(config, "d" * 64, 4, validation=validation), resume=True)
        assert (state.best_kl, state.stale_validations) == (best, 0 if best is None else 1)


def test_the_data_state_is_small_and_a_file_of_its_own(tmp_path: Path, start: RunState) -> None:
    state = DataState(
        cache_digest="d" * 64, seed=2**63, rows_consumed=10**12, tokens=10**15, skipped_samples=10**9,
        epochs=1 / 3, planned_rows=10**12, places=[(10**12, 10**4, 10**5)] * 8,
    )  # fmt: skip
    text = (add(tmp_path, 2, start.model_copy(update={"data": state})) / DATA_STATE_FILE).read_text()
    assert len(text) <= 1024
    assert DataState.model_validate_json(text) == state


def test_window_sums_survive_json_exactly(tmp_path: Path, start: RunState) -> None:
    folder = add(tmp_path, 2, start.model_copy(update={"window": {"loss": 0.1 + 0.2}}))
    assert RunState.model_validate_json((folder / STATE_FILE).read_bytes()).window == {"loss": 0.1 + 0.2}


def test_folders_in_a_checkpoint_are_synced_before_its_mark(tmp_path: Path, start: RunState, monkeypatch) -> None:
    """Of a sharded checkpoint: nothing else syncs their entries."""
    folder = tmp_path / "checkpoint-2"
    (folder / "optimizer_0").mkdir(parents=True)
    (folder / "optimizer_0" / ".metadata").write_text("x")
    write_state(folder, start)
    files = settle(folder, names_in(folder))
    synced: list[tuple[str, bool]] = []
    sync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (folder / MARK_FILE).exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    seal(folder, 2, files)
    for path in (folder / "optimizer_0", folder, tmp_path):
        assert (str(path), False) in synced
    assert damage(folder) is None
