"""W&B, offline and against a server on loopback, read back by its own tools or as the server received it."""

from __future__ import annotations

import dataclasses
import io
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import recall_score

from tests.tracking.conftest import CURVE_KEYS, SUMMARY, predicted, wait_for
from tests.tracking.stub import Stub
from tl_experiments.config.compose import compose
from tl_experiments.tracking.process import following
from tl_experiments.tracking.runs import Reader
from tl_experiments.tracking.wandb_tables import views

OPTIONS = {"project": "transfer", "entity": None, "mode": "auto", "images": 6, "artifacts": []}
KEY = "canary" + "0" * 34
SYNC = "to upload them: wandb sync"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """W&B's command line leaves a log in the current folder."""
    monkeypatch.chdir(tmp_path)


def tool(*arguments: str | Path) -> str:
    command = [str(Path(sys.executable).with_name("wandb")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def without_waiting(lines: list[str]) -> list[str]:
    """Whether a command says that it waits depends on how busy the machine is."""
    return [line for line in lines if not line.startswith("waiting for")]


def everything_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def server(monkeypatch):
    stub = Stub()
    monkeypatch.setenv("WANDB_BASE_URL", stub.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")  # whole seconds; else 15
    return stub


def records_of(folder: Path) -> list[dict]:
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return [json.loads(line) for line in tool("leet", "inspect", "--json", file).splitlines()]


def inspected(folder: Path) -> dict:
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return json.loads(tool("leet", "inspect", "--summary", "--json", file))


def test_offline_without_a_key(sweep, said):
    sweep.whole("a")
    with following(sweep.folder, {"wandb": OPTIONS}):
        pass
    lines = [f"wandb: runs written offline: 1; {SYNC} {sweep.folder}/wandb/offline-run-*"]
    assert without_waiting(said()) == lines
    found = inspected(sweep.folder)
    assert SUMMARY.items() <= found["summary"].items()
    assert found["config"]["arm"]["backbone"] == "resnet18"
    with following(sweep.folder, {"wandb": OPTIONS}):
        pass
    assert without_waiting(said()) == lines  # entered once


def test_a_finished_run_is_shown(sweep, monkeypatch):
    """One run with everything: hostile names, a further test set, pictures, stored files; and no secret in any."""
    monkeypatch.setenv("SOME_TOKEN", KEY)
    classes = ("<script>alert(1)</script>", "=cmd()", f"of {KEY}", "x" * 300)
    found = {split: predicted(40, classes, seed) for seed, split in enumerate(("val", "test", "test/a sketch"))}
    digits = dataclasses.asdict(compose(["tracker=none"]))
    sweep.whole("a", found, config=digits)
    with following(sweep.folder, {"wandb": {**OPTIONS, "artifacts": ["checkpoint", "record", "predictions"]}}):
        pass
    assert KEY.encode() in everything_below(sweep.folder / "a")  # the predictions keep names as they are

    records = records_of(sweep.folder)
    charts = {
        key.removeprefix("_wandb.visualize."): value["panel_config"]
        for record in records
        for key, value in record.get("config", {}).get("update", {}).items()
        if key.startswith("_wandb.visualize.")
    }
    splits = {"val", "test", "test/a_sketch"}
    assert charts.keys() == {f"{kind}/{split}" for kind in ("confusion_matrix", "calibration") for split in splits}
    assert charts["confusion_matrix/test"]["panelDefId"] == "wandb/confusion_matrix/v1"
    axes = {
        one["metric"].get("name") or one["metric"]["glob_name"]: one["metric"] for one in records if "metric" in one
    }
    assert axes["val_*"]["step_metric"] == axes["train_*"]["step_metric"] == "epoch"

    summary = inspected(sweep.folder)["summary"]
    assert summary["val_accuracy"] == {"min": 0, "max": 0.5, "last": 0.5}
    sketch = predicted(40, classes, 2)
    assert summary["test/a_sketch_accuracy"] == pytest.approx((sketch.probabilities.argmax(1) == sketch.labels).mean())
    tables = {key: value for key, value in summary.items() if isinstance(value, dict) and value.get("nrows")}
    assert tables.keys() == {
        *(f"Custom Chart Tables/{chart}_table" for chart in charts),
        *(f"per_class/{split}" for split in splits),
        *(f"predictions/{split}" for split in splits - {"val"}),
    }
    (run,) = sweep.folder.glob("wandb/offline-run-*")
    rows = json.loads((run / "files" / tables["per_class/test"]["path"]).read_text())["data"]
    names, support, predictions, _, recall, *_ = zip(*rows, strict=True)
    assert names == ("<script>alert(1)</script>", "=cmd()", "of ***", "x" * 63 + "…")
    reference = found["test"]
    assert (support, predictions) == ((14, 13, 13, 0), tuple(np.bincount(reference.predicted, minlength=4)))
    np.testing.assert_allclose(
        recall[:3], recall_score(reference.labels, reference.predicted, labels=[0, 1, 2], average=None)
    )
    assert recall[3] is None

    artifacts = {one["artifact"]["name"]: one["artifact"] for one in records if one["type"] == "artifact"}
    shown = next(one for name, one in artifacts.items() if "predictionstest-" in name)
    files = {one["path"]: Path(one["local_path"]).read_bytes() for one in shown["manifest"]["contents"]}
    pictures = [Image.open(io.BytesIO(content)) for path, content in files.items() if path.startswith("media/images/")]
    assert [max(picture.size) for picture in pictures] == [160] * 6
    assert {name for name in artifacts if name.endswith("-a")} == {"record-a", "predictions-a"}  # it kept no checkpoint
    assert set(artifacts["record-a"]["aliases"]) == {"latest", "seed-0", "sweep"}
    assert KEY.encode() not in everything_below(sweep.folder / "wandb")


def test_an_offline_run_that_goes_on_is_written_whole(sweep):
    """W&B does not resume offline files; uploaded in the order of their names, the last one counts."""
    sweep.begin("a")
    sweep.line("a", 0)
    with following(sweep.folder, {"wandb": OPTIONS}):
        pass
    time.sleep(1.1)  # their names have seconds
    sweep.line("a", 4)
    sweep.finish("a")
    with following(sweep.folder, {"wandb": OPTIONS}):
        pass
    first, last = sorted(sweep.folder.glob("wandb/offline-run-*/*.wandb"))
    assert first.name == last.name == "run-sweep-a.wandb"
    records = [json.loads(line) for line in tool("leet", "inspect", "--json", last).splitlines()]
    assert [record["history"]["item"]["_step"] for record in records if record["type"] == "history"] == [0, 4]


def test_a_key_that_is_refused_costs_a_line(sweep, said, server):
    server.refuses = True
    sweep.whole("a")
    with following(sweep.folder, {"wandb": OPTIONS}):
        pass
    first, last = [line for line in said() if line.startswith("wandb")]
    assert first.endswith("; going on offline")
    assert KEY not in first
    assert SYNC in last
    assert SUMMARY.items() <= inspected(sweep.folder)["summary"].items()


def test_online_runs_are_seen_while_they_train(sweep, said, server):
    for run in ("a", "b"):
        sweep.begin(run)
        sweep.line(run, 0)
    with following(sweep.folder, {"wandb": OPTIONS}):
        for run in ("sweep-a", "sweep-b"):  # several at once
            wait_for(lambda run=run: server.histories[run])
        assert not server.exit_codes
        sweep.line("a", 4, 0.25)
        wait_for(lambda: len(server.histories["sweep-a"]) == 2, 30)
        sweep.finish("a")
        sweep.state("b", "diverged", "training: the loss is not finite at step 3 -> lower optimizer.lr")
    assert said() == []
    assert server.exit_codes == {"sweep-a": 0, "sweep-b": 1}
    history = server.histories["sweep-a"]
    assert [(line["_step"], line["val_accuracy"]) for line in history] == [(0, 0.5), (4, 0.25)]
    assert {key for key in history[1] if not key.startswith("_")} == CURVE_KEYS
    assert SUMMARY.items() <= server.summaries["sweep-a"].items()
    assert server.configs["sweep-a"]["learning_rate"] == 0.001
    assert server.configs["sweep-a"]["optimizer"] == {"lr": None}
    first = server.upserts["sweep-a"]
    assert (first["groupName"], first["jobType"]) == ("sweep", "last_n_blocks(n=2)")
    assert first["displayName"] == "resnet18 last_n_blocks(n=2) lr 0.001 seed 0"
    assert set(first["tags"]) == {"digits", "resnet18", "linear", "last_n_blocks(n=2)"}
    failed = server.summaries["sweep-b"]
    assert failed["state"] == "diverged"
    assert server.summaries["sweep-a"]["cause"] == ""
    assert failed["cause"].startswith("training: the loss is not finite at step 3")


def test_an_interrupted_run_goes_on_where_the_server_stands(sweep, server):
    sweep.begin("a")
    sweep.line("a", 0)
    sweep.line("a", 4)
    with following(sweep.folder, {"wandb": OPTIONS}):
        pass
    assert server.summaries["sweep-a"]["state"] == "interrupted"
    (sweep.folder / "a" / "metrics.jsonl").unlink()  # it starts over
    sweep.whole("a")
    with following(sweep.folder, {"wandb": OPTIONS}):
        pass
    assert [line["_step"] for line in server.histories["sweep-a"]] == [0, 4, 8]
    assert server.summaries["sweep-a"]["state"] == "ok"


def test_no_secret_arrives(sweep, server, said):
    sweep.begin("a", config={"backbone": {"api_token": KEY}, "uri": f"https://user:{KEY}@host/x", "text": f"is {KEY}"})
    sweep.line("a", 0)
    sweep.state("a", "failed", f"HTTPError: https://user:{KEY}@host/x")
    before = everything_below(sweep.folder / "a")
    with following(sweep.folder, {"wandb": OPTIONS, "csv": {}}):
        pass
    assert server.configs["sweep-a"]["uri"] == "https://***@host/x"
    assert server.configs["sweep-a"]["text"] == "is ***"
    assert KEY.encode() in before  # what was made by hand above
    for path in (sweep.folder / "a" / "start.json", sweep.folder / "sweep.json"):
        path.unlink()
    assert KEY.encode() not in everything_below(sweep.folder)
    assert not [body for body in server.bodies if KEY.encode() in body]


def test_a_closed_port_costs_a_line(sweep, said, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    sweep.whole("a")
    with following(sweep.folder, {"wandb": OPTIONS}):
        pass
    first, last = without_waiting(said())
    assert first == "wandb: http://127.0.0.1:9 does not answer: ConnectionError; going on offline"
    assert SYNC in last
    assert SUMMARY.items() <= inspected(sweep.folder)["summary"].items()


def test_a_port_that_never_answers_costs_a_line(sweep, said, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        sweep.whole("a")
        since = time.monotonic()
        with following(sweep.folder, {"wandb": OPTIONS}):
            pass
    assert time.monotonic() - since < 20
    lines = [line for line in said() if line.startswith("wandb")]
    assert "does not answer: ReadTimeout; going on offline" in lines[0]
    assert SYNC in lines[1]


def test_a_server_that_dies_in_mid_run(sweep, said, server, monkeypatch):
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "3")
    sweep.begin("a")
    sweep.line("a", 0)
    with following(sweep.folder, {"wandb": OPTIONS}):
        wait_for(lambda: server.histories["sweep-a"])
        server.die()
        sweep.line("a", 4)
        sweep.finish("a")
        since = time.monotonic()
    assert time.monotonic() - since < 15
    (line,) = [line for line in said() if SYNC in line]
    assert line.startswith("wandb: runs not uploaded yet: 1; ")

    again = Stub(server.port)  # the server is back, and the line that was printed works
    tool("sync", *line.partition("wandb sync ")[2].split())
    assert [one["_step"] for one in again.histories["sweep-a"]] == [0, 4]
    assert SUMMARY.items() <= again.summaries["sweep-a"].items()

    anew = Stub()  # or the same command again
    monkeypatch.setenv("WANDB_BASE_URL", anew.url)
    with following(sweep.folder, {"wandb": OPTIONS}):
        pass
    assert [one["_step"] for one in anew.histories["sweep-a"]] == [0, 4]


def test_a_folder_that_cannot_be_written(sweep, said):
    sweep.whole("a")
    (sweep.folder / "wandb").write_text("a file where the folder should be")
    with following(sweep.folder, {"wandb": OPTIONS, "csv": {}}):
        wait_for(said)  # the first attempt, while the command still runs
    first, last = without_waiting(said())
    assert first.startswith("wandb: FileExistsError: ")
    assert first.endswith("; training goes on, and this is tried again")
    assert last.startswith("wandb: not all is entered (FileExistsError: ")
    assert (sweep.folder / "csv" / "runs.csv").exists()


def test_pictures_are_asked_for_where_the_images_were(sweep, tmp_path):
    """The command may be called from another folder than the one that the run's path is relative to."""
    (tmp_path / "photos").mkdir()
    config = {"dataset": {"name": "image_folder", "root": "photos"}}
    sweep.whole("a", {"test": predicted()}, config=config)
    (run,) = Reader(sweep.folder).changed(over=True)
    run = dataclasses.replace(
        run, record=dataclasses.replace(run.record, data={"location": {"root": str(tmp_path / "photos")}})
    )
    asked = []
    views(run, 3, lambda config, items: asked.append(config["dataset"]["root"]) or {})
    assert asked == [str(tmp_path / "photos")]
