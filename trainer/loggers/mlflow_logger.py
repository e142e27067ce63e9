"""MLflow, through its client alone: no global run, no patched libraries."""

import os
from collections.abc import Sequence
from typing import Any

from trainer.loggers.run_logger import Line, LoggedRun, flattened

ID_TAG = "train_student.id"
MOST_METRICS, MOST_PARAMS, MOST_CHARACTERS = 1000, 100, 500  # of one request; of a value
RETRIES, SECONDS = "2", "20"  # of a request; MLflow's own are 7 and 120


class MlflowLogger:
    """Logs to the tracking server that MLflow is set up for, else to ``mlruns`` in the output folder."""

    title = "MLflow"

    def __init__(self, run: LoggedRun) -> None:
        """Raises ImportError."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", SECONDS)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient, is_tracking_uri_set

        self._logged = run
        self._uri = None
        if not is_tracking_uri_set():
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs more than mlflow-skinny
            self._uri = (run.folder / "mlruns").absolute().as_uri()
        self._new_client = lambda: MlflowClient(self._uri)
        self._client: Any = None
        self._run_id = ""

    def open(self) -> None:
        """As said there: a run is found again by a tag with its id."""
        self._client, run = self._new_client(), self._logged
        experiment = self._client.get_experiment_by_name(run.project)
        place = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        found = self._client.search_runs([place], f"tags.{ID_TAG} = '{run.id}'", max_results=1)
        if found:
            self._run_id, known = found[0].info.run_id, found[0].data.params
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            made = self._client.create_run(place, run_name=run.name, tags={ID_TAG: run.id})
            self._run_id, known = made.info.run_id, {}
            if self._uri is not None:  # MLflow finds no run without a folder of artifacts, and stores keep no empty one
                self._client.log_dict(self._run_id, dict(self._logged.config), "config.json")
        self._log_config(known)

    def write(self, lines: Sequence[Line]) -> None:
        """As said there."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(1000 * line.time), line.step)
            for line in lines
            for name, value in {**line.values, "train/global_step": line.step}.items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + MOST_METRICS])

    def close(self, failed: bool) -> None:
        """As said there."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

    def _log_config(self, known: dict[str, str]) -> None:
        """Log settings as parameters; MLflow lets none change, so one that did at resume becomes a tag."""
        from mlflow.entities import Param, RunTag

        now = {key: str(value)[:MOST_CHARACTERS] for key, value in flattened(self._logged.config).items()}
        params = [Param(key, value) for key, value in now.items() if key not in known]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + MOST_PARAMS])
        tags = [RunTag(f"resumed.{key}", value) for key, value in now.items() if known.get(key, value) != value]
        if tags:
            self._client.log_batch(self._run_id, tags=tags)
