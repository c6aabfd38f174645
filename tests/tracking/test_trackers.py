"""Each tracker's files, read back by the tool that they are for; the same keys and values in all of them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from tests.tracking.conftest import CURVE_KEYS, SUMMARY, wait_for
from tl_experiments.tracking import process
from tl_experiments.tracking.process import following

MLFLOW = {"uri": None, "experiment": None}
WANDB = {"project": "transfer", "entity": None, "mode": "offline", "images": 0, "artifacts": []}


def enter(folder: Path, **trackers) -> None:
    with following(folder, trackers):
        pass


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def mlflow_run(sweep):
    client = MlflowClient(f"sqlite:///{sweep.folder.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("sweep")
    (run,) = client.search_runs([experiment.experiment_id])
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return run, {key: [(one.step, one.value) for one in points] for key, points in history.items()}


def wandb_history(sweep) -> list[dict[str, float]]:
    (file,) = sweep.folder.glob("wandb/offline-run-*/*.wandb")
    tool = Path(sys.executable).with_name("wandb")
    command = [tool, "leet", "inspect", "--json", file]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=file.parent).stdout
    records = [json.loads(line) for line in lines.splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def test_all_at_once_hold_the_same(sweep, said):
    sweep.whole("a")
    enter(sweep.folder, csv={}, tensorboard={}, mlflow=MLFLOW, wandb=WANDB)
    assert [line for line in said() if not line.startswith(("wandb: runs written offline", "waiting"))] == []
    truth = [json.loads(line) for line in (sweep.folder / "a" / "metrics.jsonl").read_text().splitlines()]
    curves = {key: [(line["step"], line[key]) for line in truth if line[key] is not None] for key in CURVE_KEYS}

    rows = table(sweep.folder / "csv" / "metrics.csv")
    assert {key: [(int(row["step"]), float(row[key])) for row in rows if row[key]] for key in CURVE_KEYS} == curves
    (row,) = table(sweep.folder / "csv" / "runs.csv")
    assert {key: row[key] for key in SUMMARY} == {key: str(value) for key, value in SUMMARY.items()}

    (folder,) = (sweep.folder / "tensorboard").iterdir()
    board = scalars(folder)
    assert {key: board[key] for key in CURVE_KEYS} == curves
    assert {key: board[key] for key in SUMMARY} == {key: [(8, float(value))] for key, value in SUMMARY.items()}

    run, flow = mlflow_run(sweep)
    assert {key: flow[key] for key in CURVE_KEYS} == curves
    assert {key: flow[key] for key in SUMMARY} == {key: [(8, float(value))] for key, value in SUMMARY.items()}
    assert run.info.run_name == "resnet18 last_n_blocks(n=2) lr 0.001 seed 0"
    assert run.data.params["arm.backbone"] == "resnet18"
    assert run.data.params["optimizer.lr"] == "None"
    assert run.info.status == "FINISHED"

    history = wandb_history(sweep)
    assert {key: [(line["_step"], line[key]) for line in history if key in line] for key in CURVE_KEYS} == curves


def test_an_interrupted_run_goes_on_without_repeating_a_step(sweep):
    sweep.begin("a")
    sweep.line("a", 0, 0.0)
    sweep.line("a", 4, 0.25)
    enter(sweep.folder, tensorboard={}, mlflow=MLFLOW)
    assert mlflow_run(sweep)[0].info.status == "KILLED"
    (sweep.folder / "a" / "metrics.jsonl").unlink()  # the attempt after the kill starts over
    sweep.whole("a")
    for _ in range(2):  # the second time nothing is missing
        enter(sweep.folder, tensorboard={}, mlflow=MLFLOW)
    run, flow = mlflow_run(sweep)
    (folder,) = (sweep.folder / "tensorboard").iterdir()
    points = [(0, 0.0), (4, 0.25), (8, 0.5)]
    assert flow["val_accuracy"] == scalars(folder)["val_accuracy"] == points
    assert run.info.status == "FINISHED"
    assert scalars(folder)["test_accuracy"] == [(8, 0.625)]


def test_failures_are_marked(sweep):
    sweep.begin("a")
    sweep.line("a", 0)
    sweep.state("a", "oom", "out of memory -> lower trainer.batch_size")
    sweep.state("b", "failed", "=the weights are not there")  # it never began
    enter(sweep.folder, csv={}, tensorboard={}, mlflow=MLFLOW)
    run, _ = mlflow_run(sweep)
    assert run.info.status == "FAILED"
    assert run.data.tags["state"] == "oom"
    assert run.data.tags["cause"] == "out of memory -> lower trainer.batch_size"
    rows = table(sweep.folder / "csv" / "runs.csv")
    assert [(row["run"], row["state"]) for row in rows] == [("a", "oom"), ("b", "failed")]
    assert rows[1]["cause"] == "'=the weights are not there"
    (folder,) = (sweep.folder / "tensorboard").iterdir()
    found = EventAccumulator(str(folder)).Reload()
    content = found.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(content).status == 2  # STATUS_FAILURE of hparams/api.proto


def test_csv_quotes_texts_and_not_numbers(sweep):
    sweep.begin("a", arm={"dataset": "=cmd()", "backbone": "@x", "head": "-y", "freeze_strategy": "+z"})
    sweep.line("a", 0, -0.5)
    enter(sweep.folder, csv={})
    (row,) = table(sweep.folder / "csv" / "runs.csv")
    assert [row[key] for key in ("dataset", "backbone", "head", "freeze_strategy")] == ["'=cmd()", "'@x", "'-y", "'+z"]
    assert table(sweep.folder / "csv" / "metrics.csv")[0]["val_accuracy"] == "-0.5"


def test_a_tracker_that_fails_leaves_the_others_alone(sweep, said):
    sweep.whole("a")
    enter(sweep.folder, mlflow={"uri": "http://user:s3cret@127.0.0.1:9", "experiment": None}, csv={})
    (line,) = [line for line in said() if line.startswith("mlflow")]
    assert "the same command again enters the rest" in line
    assert "s3cret" not in line
    assert len(table(sweep.folder / "csv" / "metrics.csv")) == 3


def test_one_that_never_finishes_is_ended(sweep, said, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time, signal\nif 'tl_experiments.tracking' in sys.orig_argv: time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(process, "_WAIT_S", 3.0)
    sweep.whole("a")
    enter(sweep.folder, csv={})
    assert said() == [
        "waiting for csv, at most 3 s",
        "csv: not done after 3 s and ended; the same command again enters what is missing",
    ]


def test_it_outlives_a_killed_command_by_one_pass(sweep):
    """The parent is killed; its trackers enter what is there, call it interrupted, and end."""
    sweep.begin("a")
    sweep.line("a", 0)
    code = (
        "import sys, time; from pathlib import Path; from tl_experiments.tracking.process import following\n"
        "with following(Path(sys.argv[1]), {'csv': {}}): print('on', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, sweep.folder], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    runs = sweep.folder / "csv" / "runs.csv"
    wait_for(runs.exists)
    sweep.line("a", 4)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: table(runs)[0]["state"] == "interrupted")
    assert len(table(sweep.folder / "csv" / "metrics.csv")) == 2
