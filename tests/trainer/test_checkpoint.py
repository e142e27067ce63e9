from pathlib import Path

import pytest

from schemas.errors import UserError
from trainer.checkpoint import (
    DATA_STATE_FILE,
    STATE_FILE,
    DataState,
    RunState,
    checkpoint_folders,
    find_resume,
    keep_newest,
    new_state,
    remove_checkpoint,
    remove_unused,
    write_state,
)


@pytest.fixture
def start(make_config) -> RunState:
    return new_state(make_config(), "d" * 64, global_batch=4)


def add(output: Path, step: int, state: RunState | None) -> Path:
    folder = output / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "model.safetensors").write_text("x")
    if state is not None:
        write_state(folder, state.model_copy(update={"global_step": step}))
    return folder


def test_newest_whole_checkpoint_is_taken_and_incomplete_ones_go(tmp_path: Path, start: RunState) -> None:
    add(tmp_path, 2, start)
    newest = add(tmp_path, 10, start)
    torn = add(tmp_path, 12, None)
    (tmp_path / "checkpoint-notes").mkdir()
    assert find_resume(tmp_path, start, resume=True)[0] == newest
    assert find_resume(tmp_path, start, resume=True)[1].global_step == 10
    assert torn.exists(), "looking changes nothing"
    remove_unused(tmp_path, resume=True)
    assert newest.exists()
    assert not torn.exists()
    assert (tmp_path / "checkpoint-notes").exists()


def test_nothing_to_resume(tmp_path: Path, start: RunState) -> None:
    assert find_resume(tmp_path / "absent", start, resume=True) == (None, start)


def test_starting_over_removes_checkpoints(tmp_path: Path, start: RunState) -> None:
    add(tmp_path, 2, start)
    assert find_resume(tmp_path, start, resume=False) == (None, start)
    remove_unused(tmp_path, resume=False)
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
        ({"optimizer": {"lr": 1.0}}, r"optimizer.lr = 0.003, the configuration now says 1.0"),
        ({"losses": {"tla": {"temperature": 2.0}}}, r'losses.tla = .*"temperature": 1.0'),
        ({"loop": {"seed": 7}}, r"loop.seed = 0, the configuration now says 7"),
        ({"loop": {"parallel": "fsdp"}}, r'loop.parallel = "ddp", the configuration now says "fsdp"'),
        ({"data": {"packing": True}}, r"data.packing = false, the configuration now says true"),
    ],
)
def test_settings_that_would_change_the_run_are_refused(tmp_path, make_config, start, changes, message) -> None:
    add(tmp_path, 2, start)
    with pytest.raises(UserError, match=message):
        find_resume(tmp_path, new_state(make_config(**changes), "d" * 64, 4), resume=True)
    with pytest.raises(UserError, match="rows per step = 4, the configuration now says 8"):
        find_resume(tmp_path, new_state(make_config(), "d" * 64, 8), resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"loop": {"max_steps": 99, "save_every": 1, "log_every": 3}},
        {"loop": {"micro_batch_size": 4, "gradient_accumulation": 1}},
        {"data": {"num_workers": 2}},
        {"loop": {"compile": True}},
    ],
)
def test_settings_that_may_change(tmp_path, make_config, start, changes) -> None:
    folder = add(tmp_path, 2, start)
    assert find_resume(tmp_path, new_state(make_config(**changes), "d" * 64, 4), resume=True)[0] == folder


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
    assert not (folder / STATE_FILE).exists()


@pytest.mark.parametrize("name", [STATE_FILE, DATA_STATE_FILE])
def test_damaged_state_is_an_error_and_not_a_fresh_start(tmp_path: Path, start: RunState, name: str) -> None:
    (add(tmp_path, 2, start) / name).write_text('{"rows_consumed": "many"}')
    with pytest.raises(UserError, match=name):
        find_resume(tmp_path, start, resume=True)


def test_a_lost_data_state_is_named(tmp_path: Path, start: RunState) -> None:
    (add(tmp_path, 2, start) / DATA_STATE_FILE).unlink()
    with pytest.raises(UserError, match=rf"{DATA_STATE_FILE}: missing; set loop.resume to false"):
        find_resume(tmp_path, start, resume=True)


def test_the_state_of_the_data_is_small_and_can_be_read_on_its_own(tmp_path: Path, start: RunState) -> None:
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
