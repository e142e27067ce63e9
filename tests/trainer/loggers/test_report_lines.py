"""Runs that report to the real packages, offline: what each stored is what ``metrics.jsonl`` says."""

import json
import logging
import socket
from collections import defaultdict
from pathlib import Path
from typing import Any

import fsspec
import pytest

from schemas.errors import UserError
from schemas.train_config import TrainConfig
from support.callbacks import StopAt
from support.logged_runs import mlflow_history, wandb_records
from support.stored import stored_at, stored_losses
from teacher_cache.stop_request import StopRequest
from trainer.distiller import distill
from trainer.loggers import report_lines, wandb_logger
from trainer.loggers.run_logger import dashboard_names

ALL = ["tensorboard", "wandb", "mlflow", "trackio"]
Series = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import wandb

    wandb.teardown()  # it reads the environment once
    folder = tmp_path_factory.mktemp("trackio")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", folder)
    return folder


def expected(output: str) -> Series:
    """Every metric of every line, by the documented names."""
    found: Series = defaultdict(list)
    for line in (Path(output) / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        for name, value in record.items():
            found["eval/" + name[5:] if name.startswith("eval_") else "train/" + name].append((step, value))
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "eval/kl", "train/peak_memory_bytes"} <= {*found}
    return dict(found)


def unchanged(wanted: Series, stored: Series) -> None:
    assert {name: stored.get(name) for name in wanted} == wanted


@pytest.fixture
def resumed(make_config: Any) -> TrainConfig:
    """A run to step 6 that was interrupted at step 3, with all loggers, and resumed with another rate."""
    loop = {"report_to": ALL, "validate_every": 3, "max_steps": 6, "save_every": 2}
    changes = {"loop": loop, "data": {"validation_fraction": 0.2}}
    stop = StopRequest()
    distill(make_config(**changes), stop, [StopAt(3, stop)])
    config = make_config(**changes, optimizer={"lr": 1e-3})
    distill(config)
    return config


def test_every_logger_has_every_metric_and_a_resumed_run_goes_on(resumed: TrainConfig, clean: Path) -> None:
    output = Path(resumed.output)
    wanted = expected(resumed.output)
    assert [step for step, _ in wanted["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in wanted["eval/kl"]] == [3, 6]
    run = json.loads((output / "run.json").read_text())
    assert run["starts"] == 2

    series: Series = defaultdict(list)
    files = sorted(output.glob(f"wandb/offline-run-*-{run['id']}/run-{run['id']}.wandb"))
    assert len(files) == 2, "a resumed run is one of the same id, in a file of its own until it is synced"
    for file in files:
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                keys = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert keys["loop"]["max_steps"] == 6
                assert (record.run.project, record.run.run_id) == ("train-student", run["id"])
            if kind == "history":
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                for name, value in items.items():
                    series[name].append((items["train/global_step"], value))
    unchanged(wanted, series)

    from mlflow import MlflowClient

    store = (output / "mlruns").as_uri()
    experiment = MlflowClient(store).get_experiment_by_name("train-student")
    assert experiment is not None
    (logged,) = MlflowClient(store).search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["optimizer.lr"] == "0.003"
    assert logged.data.tags["resumed.optimizer.lr"] == "0.001"
    unchanged(wanted, mlflow_history(store, logged.info.run_id))

    from trackio.sqlite_storage import SQLiteStorage

    (record,) = SQLiteStorage.get_run_records("train-student")
    assert record["name"] == f"out-{run['id']}"
    series = defaultdict(list)
    for row in SQLiteStorage.get_logs("train-student", record["name"]):
        for name in row.keys() - {"step", "timestamp"}:
            series[name].append((row["step"], row[name]))
    unchanged(wanted, series)
    assert list(clean.glob("*.db"))

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    for name, points in wanted.items():
        found = [(each.step, each.value) for each in events.Scalars(name)]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in points]
    assert "config/text_summary" in events.Tags()["tensors"]


def test_a_stored_run_is_one_run_of_mlflow_on_any_machine(make_config: Any, s3_url: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config = make_config(loop={"report_to": ["mlflow"], "log_every": 1}, output=str(tmp_path / "local"))
    for steps in (2, 4):
        distill(stored_at(config, s3_url, tmp_path / f"machine-{steps}", max_steps=steps))
    fsspec.filesystem("s3").get(f"{s3_url}/mlruns/", f"{tmp_path / 'mlruns'}/", recursive=True)
    store = (tmp_path / "mlruns").as_uri()
    (experiment,) = MlflowClient(store).search_experiments(filter_string="name = 'train-student'")
    (logged,) = MlflowClient(store).search_runs([experiment.experiment_id])
    losses = mlflow_history(store, logged.info.run_id)["train/loss"]
    assert losses == [(step, pytest.approx(loss, rel=1e-9)) for step, loss in stored_losses(s3_url).items()]
    assert [step for step, _ in losses] == [1, 2, 3, 4]


def test_servers_that_cannot_be_reached_end_no_run(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setattr(wandb_logger, "INIT_SECONDS", 2.0)
        config = make_config(loop={"report_to": ["wandb", "mlflow"]})
        with caplog.at_level(logging.WARNING):
            assert distill(config)["ended"] == "completed"
    said = [each.getMessage() for each in caplog.records if "loop.report_to" in each.getMessage()]
    assert sum("MLflow gets no more metrics" in each for each in said) == 1
    assert sum("W&B" in each and each.endswith("logging offline") for each in said) == 1
    assert len(said) == 2
    (file,) = Path(config.output).glob("wandb/offline-run-*/*.wandb")
    assert sum(record.WhichOneof("record_type") == "history" for record in wandb_records(file)) == 6


def test_without_credentials_wandb_is_offline(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    config = make_config(loop={"report_to": ["wandb"], "max_steps": 1})
    with caplog.at_level(logging.WARNING):
        distill(config)
    assert "W&B: not logged in (wandb login, WANDB_API_KEY): logging offline" in caplog.text
    assert len(list(Path(config.output).glob("wandb/offline-run-*"))) == 1


def test_a_package_that_is_missing_is_one_line_before_anything_is_written(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_lines.importlib.util, "find_spec", lambda name: None)
    config = make_config(loop={"report_to": ["tensorboard", "mlflow"]})
    with pytest.raises(UserError, match=r"loop\.report_to: mlflow is not installed; `.*-m pip install mlflow-skinny`"):
        distill(config)
    assert not Path(config.output).exists()


def test_no_loggers(make_config: Any) -> None:
    config = make_config(loop={"report_to": [], "max_steps": 1})
    distill(config)
    assert not {"tensorboard", "wandb", "mlruns"} & {path.name for path in Path(config.output).iterdir()}


def test_names() -> None:
    logs = {"loss": 1, "eval_kl": 2.0, "eval_top1": 3, "evaluated": 4, "note": "text", "grad_norm": 0.5}
    names = {"train/loss": 1, "eval/kl": 2, "eval/top1": 3, "train/evaluated": 4, "train/grad_norm": 0.5}
    assert dashboard_names(logs) == names
