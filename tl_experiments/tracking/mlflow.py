"""MLflow: a sweep is an experiment, a job a run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from tl_experiments.tracking.entries import (
    ARM,
    Entered,
    cause,
    config,
    flat,
    new_points,
    run_name,
    short,
    split_key,
    summary,
)
from tl_experiments.tracking.runs import Run
from tl_experiments.tracking.tables import as_csv, confusion, per_class

_NAME = "mlflow"
_BATCH = 1000  # metrics MLflow takes at once
_PARAMS = 100
_STATUS = {"ok": "FINISHED", "interrupted": "KILLED", "skipped": "KILLED", "pruned": "KILLED"}
_JOB = "tl_job"  # finds a run again whose memory was lost

# A tracker that waits minutes for a dead server would never be done; and this product reports to nobody.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


class Mlflow:
    """Curves as metrics with their step, the summary as metrics at the last step, the config as dotted params.

    Of a finished run ``per_class/<split>.csv`` and ``confusion_matrix/<split>.csv`` are stored as artifacts.

    Args:
        folder: Of the sweep.
        uri: Tracking URI; None is ``MLFLOW_TRACKING_URI``, or else the store beside the sweep.
        experiment: Its name; None is the sweep's.
    """

    whole = False

    def __init__(self, folder: Path, uri: str | None, experiment: str | None) -> None:
        local = f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or local
        self._experiment = experiment or folder.name
        # A store of ours keeps its artifacts beside it, not in the current folder; a server has a place of its own
        self._artifacts = (folder.resolve().parent / "mlflow_artifacts").as_uri() if self._uri == local else None
        self._connected: tuple[MlflowClient, str] | None = None

    def update(self, run: Run) -> None:
        entered = Entered.read(run, _NAME)
        if not run.facts or entered.completes(run):
            return
        client, experiment = self._connect()
        if entered.id is None:
            entered = Entered(id=_begin(client, experiment, run))
            entered.write(run, _NAME)
        elif entered.state is not None:  # it goes on
            client.update_run(entered.id, status="RUNNING")
        assert entered.id is not None
        step, now = entered.step, run.began
        metrics: list[Metric] = []
        for step, values in new_points(run, entered.step):
            now = run.began + values["seconds"]
            metrics += _metrics(values, now, step)
        if run.ended:
            metrics += _metrics(summary(run), now, max(step, 0))
        for start in range(0, len(metrics), _BATCH):
            client.log_batch(entered.id, metrics=metrics[start : start + _BATCH])
        for name, text in _files(run):
            client.log_text(entered.id, text, name)
        if run.ended:
            client.set_tag(entered.id, "state", run.state)
            client.set_tag(entered.id, "cause", cause(run) or "")
            client.set_terminated(entered.id, _STATUS.get(run.state, "FAILED"))
        Entered(state=run.state if run.ended else None, step=step, id=entered.id).write(run, _NAME)

    def flush(self) -> None:
        """Each call to MLflow is complete when it returns."""

    def close(self) -> None:
        """Nothing is held open."""

    def holds(self, run: Run) -> Entered:
        return Entered.read(run, _NAME)

    def forget(self, run: Run) -> None:
        """Its run there is deleted, which MLflow can undo."""
        entered = Entered.read(run, _NAME)
        if entered.id is not None:
            self._connect()[0].delete_run(entered.id)
        Entered.forget(run, _NAME)

    def missing(self) -> Iterator[str]:
        yield from ()

    def _connect(self) -> tuple[MlflowClient, str]:
        """The client and the experiment's id; late, since it makes the store."""
        if self._connected is None:
            client = MlflowClient(self._uri)
            found = client.get_experiment_by_name(self._experiment)
            made = (
                found.experiment_id
                if found is not None
                else client.create_experiment(self._experiment, self._artifacts)
            )
            self._connected = client, made
        return self._connected


def _begin(client: MlflowClient, experiment: str, run: Run) -> str:
    """The run's id in MLflow: of the one that is there, or of a new one."""
    found = client.search_runs([experiment], filter_string=f"tags.{_JOB} = '{run.id}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {_JOB: run.id, **{key: short(run.facts["arm"][key], 500) for key in ARM}}
    began = int(run.began * 1000)
    made = client.create_run(experiment, start_time=began, tags=tags, run_name=run_name(run)).info.run_id
    params = [Param(re.sub(r"[^\w\-. :/]", "_", key)[:250], short(str(value), 500)) for key, value in _params(run)]
    for start in range(0, len(params), _PARAMS):
        client.log_batch(made, params=params[start : start + _PARAMS])
    client.log_batch(made, tags=[RunTag("state", "running")])
    return made


def _files(run: Run) -> Iterator[tuple[str, str]]:
    for split, predictions in run.predictions().items():
        yield f"per_class/{split_key(split)}.csv", as_csv(per_class(predictions).records())
        yield f"confusion_matrix/{split_key(split)}.csv", as_csv(confusion(predictions).records())


def _params(run: Run) -> Iterator[tuple[str, object]]:
    yield from flat(config(run)).items()


def _metrics(values: Mapping[str, float], now: float, step: int) -> list[Metric]:
    return [Metric(key, float(value), int(now * 1000), step) for key, value in values.items()]
