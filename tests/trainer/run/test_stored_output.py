"""Output in a store: as in a folder; damage and places that cannot be written to are told in one line."""

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.errors import AccessError, CorruptCacheError, StoreError, UserError
from schemas.manifest import FileEntry
from schemas.train_config import TrainConfig
from support.logged import losses
from support.stored import complete_checkpoints, stored_at, stored_losses
from trainer import distiller
from trainer.distiller import distill
from trainer.run import run_store
from trainer.run.run_store import RunStore, steadily
from trainer.run.stored_output import is_url, open_output, working_config

MakeConfig = Callable[..., TrainConfig]
EARLY = {"validate_every": 1, "early_stopping_patience": 9, "keep_checkpoints": 1}


@pytest.fixture
def store() -> Iterator[RunStore]:
    """In memory, empty."""
    yield RunStore("memory://run")
    fsspec.filesystem("memory").store.clear()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_a_run_in_a_store_is_one_in_a_folder_and_goes_on_on_another_machine(
    make_config: MakeConfig, student_folder: Path, s3_url: str, tmp_path: Path
) -> None:
    """Random weights, validation in each step, and one checkpoint beside the best: all that a new machine fetches."""
    student = {"checkpoint": None, "config": str(student_folder / "config.json")}
    data = {"validation_fraction": 0.2}
    local = make_config(student=student, data=data, loop=EARLY, output=str(tmp_path / "local"))
    wanted = distill(local)
    config = stored_at(local, s3_url, tmp_path / "first", max_steps=4)
    assert distill(config)["ended"] == "completed"
    assert list((tmp_path / "first").iterdir()) == [], "a finished run leaves nothing on the machine"
    store = fsspec.filesystem("s3")
    summary = distill(stored_at(local, s3_url, tmp_path / "second"))
    assert summary["output"] == s3_url
    assert 0 < summary["tokens_this_run"] < summary["tokens"] == wanted["tokens"]
    assert summary["final_step"] == wanted["final_step"]
    assert list(stored_losses(s3_url)) == [1, 2, 3, 4, 5, 6]
    assert max(complete_checkpoints(s3_url)) == 6
    again = distill(stored_at(local, s3_url, tmp_path / "third"))
    assert again["tokens_this_run"] == 0
    store.get(f"{s3_url}/final/", f"{tmp_path / 'fetched'}/", recursive=True)
    assert weights(tmp_path / "fetched").keys() == weights(Path(local.output) / "final").keys()
    names = {path.removeprefix(s3_url.removeprefix("s3://") + "/").split("/")[0] for path in store.find(s3_url)}
    here = {path.name for path in Path(local.output).iterdir()}
    assert {name for name in names if "checkpoint" not in name} == {name for name in here if "checkpoint" not in name}


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    make_config: MakeConfig, s3_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    local = make_config(output=str(tmp_path / "local"))
    distill(local)
    config = stored_at(local, s3_url, tmp_path / "scratch")
    distill(config)
    assert complete_checkpoints(s3_url) == [4, 6]
    store = fsspec.filesystem("s3")
    optimizer = f"{s3_url}/checkpoint-6/optimizer.pt"
    content = bytearray(store.cat_file(optimizer))
    content[-1] ^= 1
    store.pipe_file(optimizer, bytes(content))
    summary = distill(config)
    assert f"{s3_url}/checkpoint-6 is not complete and will be removed" in caplog.text
    assert 0 < summary["tokens_this_run"] < summary["tokens"]
    assert complete_checkpoints(s3_url) == [4, 6]
    assert list(stored_losses(s3_url).items()) == losses(local.output)
    for step in (4, 6):
        store.rm_file(f"{s3_url}/checkpoint-{step}/model.safetensors")
    with pytest.raises(UserError, match=r"checkpoint-4: no checkpoint is complete .*model\.safetensors"):
        distill(config)
    distill(stored_at(config, s3_url, tmp_path / "scratch", resume=False))
    assert list(stored_losses(s3_url).items()) == losses(local.output)


def test_a_bucket_that_cannot_be_written_is_found_out_before_anything_is_read(
    make_config: MakeConfig, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distiller, "prepare", lambda _: pytest.fail("it began"))
    config = make_config()
    with pytest.raises(UserError, match=r"^s3://no-such-bucket/run/\.lease\.json: .*bucket"):
        distill(stored_at(config, "s3://no-such-bucket/run", tmp_path))
    with pytest.raises(UserError, match=r"^output: https://host/run: plain HTTP is read-only"):
        distill(stored_at(config, "https://host/run", tmp_path))
    with pytest.raises(UserError, match=r"^gopher://host/run: cannot be opened: gopher:// is not supported"):
        distill(stored_at(config, "gopher://host/run", tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(AccessError, match="no credentials were found"):
        distill(stored_at(config, "s3://benchmark/run", tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_two_runs_do_not_share_a_place(make_config: MakeConfig, s3_url: str, tmp_path: Path) -> None:
    with open_output(s3_url, tmp_path / "one", 0, 0, 1), pytest.raises(UserError, match="in use by process"):
        distill(stored_at(make_config(), s3_url, tmp_path / "two"))


def test_a_file_url_is_a_folder(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(output=f"file://{tmp_path}/out")
    assert not is_url(config.output)
    assert working_config(config).output == f"{tmp_path}/out"


@pytest.mark.parametrize("name", ["../a", "a/../b", "/a", "a//b", "a/", ".", "a/..", "a\\b", "a\n", ""])
def test_no_name_leads_elsewhere(store: RunStore, name: str) -> None:
    with pytest.raises(CorruptCacheError, match="is not a name"):
        store.put(name, b"")


def test_folders_go_and_come_back(store: RunStore, tmp_path: Path) -> None:
    names = ["f/.metadata", "f/__0_0.distcp", "f/in/deeper/x y.jinja", "f/mark"]
    for name in names:
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_text(name)
    store.send(tmp_path / "from", names)
    assert store.folders() == ["f"]
    assert sorted(store.files("f")) == sorted(names)
    store.fetch_all(dict.fromkeys(names), tmp_path / "to")
    assert all((tmp_path / "to" / name).read_text() == name for name in names)
    with pytest.raises(CorruptCacheError, match="is not the mark's"):
        store.fetch("f/mark", tmp_path / "to", FileEntry(bytes=6, sha256="0" * 64))
    assert (tmp_path / "to/f/mark").read_text() == "f/mark", "a file with other content is not put in its place"
    store.remove("f", "mark")
    assert store.files("f") == {}


def test_an_outage_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_store, "PAUSE", 0.0)
    left = [StoreError("out"), StoreError("out")]

    def request() -> str:
        if left:
            raise left.pop()
        return "done"

    assert steadily(request) == "done"
    left[:] = [StoreError("out")] * 2
    with pytest.raises(StoreError, match="out"):
        steadily(request, seconds=-1.0)
    left[:] = [AccessError("no")]  # type: ignore[list-item]
    with pytest.raises(AccessError):
        steadily(request)
