"""``tl sync``: what arrives, what it says, what a second call does, and what happens when it is killed or refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tracking.conftest import predicted, wait_for
from tests.tracking.stub import Stub
from tl_experiments.commands.syncing import main
from tl_experiments.errors import ConfigError, UserError
from tl_experiments.tracking.mlflow import Mlflow
from tl_experiments.tracking.push import push
from tl_experiments.tracking.tables import confusion

KEY = "canary" + "0" * 34
WHY = " (not finished, or never begun)"
NAME = "resnet18 last_n_blocks(n=2) lr 0.001 seed 0"


@pytest.fixture
def server(monkeypatch):
    stub = Stub()
    monkeypatch.setenv("WANDB_BASE_URL", stub.url)
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")
    return stub


@pytest.fixture
def sync(sweep, capsys):
    """Calls it on the sweep; its exit code and lines."""

    def call(*arguments: str, folder=None):
        code = main([str(folder or sweep.folder), *arguments])
        return code, capsys.readouterr().out.splitlines()

    return call


def test_a_second_call_enters_nothing(sweep, sync):
    sweep.whole("a", {"val": predicted(), "test": predicted(seed=1)})
    sweep.begin("b")
    sweep.line("b", 0)
    sweep.state("b", "diverged", "the loss is not finite")
    sweep.begin("c")  # runs at this moment

    def points():
        boards = [EventAccumulator(str(one)).Reload() for one in sorted((sweep.folder / "tensorboard").iterdir())]
        return [(len(board.Scalars("val_accuracy")), len(board.Tags()["images"])) for board in boards]

    total = f"tensorboard: {sweep.folder}"
    new = [f"tensorboard: new: {NAME} (a)", f"tensorboard: new: {NAME} (b)", f"{total}: 2 new, 1 left out{WHY}"]
    assert sync("tracker=tensorboard") == (0, new)
    assert points() == [(3, 2), (1, 0)]
    code, lines = sync("tracker=tensorboard")
    assert (code, lines[-1]) == (0, f"{total}: 2 already there, 1 left out{WHY}")
    assert points() == [(3, 2), (1, 0)]
    assert sync("--force", "tracker=tensorboard", folder=sweep.folder / "a") == (0, [new[0], f"{total}: 1 new"])
    assert points() == [(3, 2), (1, 0)]  # anew, not twice


def test_settings_that_val_did_not_choose_are_told_from_unfinished_runs(sweep, sync):
    sweep.whole("a", {"test": predicted()})
    sweep.state("b", "unchosen", "val chose another setting with seed 0")
    sweep.begin("c")
    not_chosen = "1 not chosen (settings that val did not choose with tuning_seed: no runs)"
    assert sync("tracker=csv")[1][-1] == f"csv: {sweep.folder}: 1 new, 1 left out{WHY}, {not_chosen}"


def test_mlflow_holds_each_run_once(sweep):
    sweep.whole("a", {"val": predicted(), "test": predicted(seed=1)})
    tracker = Mlflow(sweep.folder, None, None)
    outcomes = [[one.outcome for one in push(sweep.folder, tracker, None, force)] for force in (False, False, True)]
    assert outcomes == [["new"], ["already there"], ["new"]]
    client = MlflowClient(f"sqlite:///{sweep.folder.parent}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    assert len(client.get_metric_history(run.info.run_id, "val_accuracy")) == 3
    stored = Path(run.info.artifact_uri.removeprefix("file://"))
    assert stored.is_relative_to(sweep.folder.parent)  # not in the current folder
    with (stored / "confusion_matrix" / "test.csv").open() as stream:
        cells = [(row["actual"], row["predicted"], int(row["images"])) for row in csv.DictReader(stream)]
    assert cells == list(confusion(predicted(seed=1)).rows)


def test_the_tables_stay_whole_when_one_run_is_asked_for(sweep, sync):
    sweep.whole("a", {"test": predicted()})
    sweep.whole("b", {"test": predicted(seed=1)})
    assert sync("tracker=csv", folder=sweep.folder / "b") == (
        0,
        [f"csv: new: {NAME} (b)", f"csv: {sweep.folder}: 1 new"],
    )
    with (sweep.folder / "csv" / "per_class.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["run"], row["class"]) for row in rows] == [(run, name) for run in "ab" for name in "abcd"]
    assert rows[3]["recall"] == ""
    assert sync("tracker=csv")[1][-1] == f"csv: {sweep.folder}: 2 already there"


def test_the_tables_know_what_was_there_before_however_many_runs(sweep, sync):
    for run in "abcdefghi":  # one more than are under way at once for a tracker with a server
        sweep.whole(run, {"test": predicted()})
    assert sync("tracker=csv")[1][-1] == f"csv: {sweep.folder}: 9 new"
    assert sync("tracker=csv")[1][-1] == f"csv: {sweep.folder}: 9 already there"
    sweep.whole("j", {"test": predicted()})
    assert sync("tracker=csv")[1][-1] == f"csv: {sweep.folder}: 1 new, 9 already there"


def test_what_was_written_offline_goes_to_the_server_when_there_is_one(sweep, sync, server, monkeypatch):
    """A sweep on a node without a network: the login node sends it to the project that the runs were meant for."""
    meant = {"project": "photos", "entity": None, "mode": "auto", "images": 0, "artifacts": ["record"]}
    sweep.whole("a", {"test": predicted()}, config={"tracker": {"wandb": meant}})
    code, lines = sync()
    there = f"wandb: runs written offline: 1; to upload them: wandb sync {sweep.folder}/wandb/offline-run-*"
    assert (code, lines) == (
        1,  # nobody asked for that
        [f"wandb: written offline: {NAME} (a)", there, f"wandb: {sweep.folder}: 1 written offline"],
    )
    assert sync("tracker.wandb.mode=offline")[0] == 0
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert sync() == (0, [f"wandb: new: {NAME} (a)", f"wandb: {sweep.folder}: 1 new"])
    assert server.upserts["sweep-a"]["project"] == "photos"
    rows = server.histories["sweep-a"]
    assert [row["_step"] for row in rows if "val_accuracy" in row] == [0, 4, 8]
    assert "record-a" in server.committed
    sent = len(server.bodies)
    assert sync() == (0, [f"wandb: already there: {NAME} (a)", f"wandb: {sweep.folder}: 1 already there"])
    assert len(server.bodies) == sent


def test_killed_in_mid_way_it_completes(sweep, sync, server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for run in "ab":
        sweep.whole(run, {"test": predicted()})
    server.commits.clear()
    command = [sys.executable, "-m", "tl_experiments", "sync", sweep.folder, "tracker=wandb", "tracker.wandb.images=0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ) as killed:
        wait_for(lambda: server.histories["sweep-a"] and server.histories["sweep-b"])
        killed.send_signal(signal.SIGKILL)
    wait_for(lambda: not processes_in(sweep.folder))
    server.commits.set()
    entered = sweep.folder / "a" / "wandb.json"
    assert json.loads(entered.read_text())["state"] is None
    assert not server.exit_codes
    code, lines = sync("tracker=wandb")
    assert (code, lines[-1]) == (0, f"wandb: {sweep.folder}: 2 completed")
    assert server.exit_codes == {"sweep-a": 0, "sweep-b": 0}
    for run in ("sweep-a", "sweep-b"):
        rows = server.histories[run]
        assert [row["_step"] for row in rows if "val_accuracy" in row] == [0, 4, 8]
        assert server.summaries[run]["per_class/test"]["nrows"] == 4


def processes_in(folder: Path) -> list[str]:
    """Command lines of processes that name the folder."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if "tl_experiments" in line and str(folder) in line]


def test_what_cannot_be_entered_is_said(sweep, sync, capsys):
    for run in "abcdefghij":
        sweep.whole(run)
    code, lines = sync("tracker=mlflow", "tracker.mlflow.uri=http://user:s3cret@127.0.0.1:9")
    assert code == 1
    assert lines[0].startswith(f"mlflow: failed: {NAME} (a): MlflowException")
    assert lines[9] == f"mlflow: failed: {NAME} (j): not tried after the failures above"
    assert lines[10] == f"mlflow: {sweep.folder}: 10 failed"
    assert "s3cret" not in "\n".join(lines)


def test_what_a_line_can_have_wrong(sweep, tmp_path):
    sweep.whole("a")
    for arguments, error, match in [
        ([str(sweep.folder), "seed=3"], ConfigError, "seed=3: not an option of a tracker"),
        ([str(sweep.folder), "tracker=none"], ConfigError, "tracker: none is chosen"),
        ([str(sweep.folder), "tracker=wanb"], ConfigError, "did you mean wandb?"),
        ([str(sweep.folder), "tracker.wandb.image=3"], ConfigError, "did you mean tracker.wandb.images?"),
        (["tracker=csv"], ConfigError, "no folder given"),
        ([str(tmp_path / "none")], UserError, "no such folder"),
        ([str(sweep.folder.parent)], UserError, f"no run in it -> give a sweep in it, such as {sweep.folder}"),
    ]:
        with pytest.raises(error) as caught:
            main(arguments)
        assert match in str(caught.value)
