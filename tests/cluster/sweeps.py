"""One sweep for all clusters: 2 strategies x 2 nets x 3 seeds, and what of it must be the same wherever it ran."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

from tests.conftest import TINY

# Jobs of some seconds, so that they can be hit while they train
SWEEP = [
    *TINY,
    *("backbone=timm", "backbone.name=test_resnet,test_vit", "freeze_strategy=full,lp_ft", "seed=0,1,2"),
    *("dataset.shots=10", "trainer.max_epochs=8", "feature_cache=off"),
]
JOBS = 12
# Columns that say how long it took or what it used, not what came out
MEASURED = {"wall_clock_s", "all_trials_s", "pretraining_s", "peak_memory_bytes", "not_dominated"}


def until(condition, seconds, *, process=None, log=None):
    """Wait until ``condition()`` is true and return that; fails when time is over or ``process`` has ended."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        text = log.read_text() if log is not None else ""
        assert process is None or process.poll() is None, f"the command ended: {text}"
        assert time.monotonic() < end, f"it did not happen within {seconds} s: {text}"
        time.sleep(0.05)
    return answer


def finish(process, log, seconds=300):
    """The command's end, which must be a good one."""
    assert process.wait(seconds) == 0, log.read_text()
    states = {entry["id"]: entry["state"] for entry in ledger(Path(log).parent / "out")["jobs"]}
    assert list(states.values()) == ["ok"] * JOBS


def ledger(out):
    """What ``sweep.json`` says."""
    path = out / "x" / "sweep.json"
    return json.loads(path.read_text()) if path.exists() else {"jobs": [], "tasks": []}


def training(out):
    """Ids of jobs that have trained for an epoch at least and are not done."""
    curves = [path for path in (out / "x").glob("*/metrics.jsonl") if path.stat().st_size]
    return [path.parent.name for path in curves if not (path.parent / "record.json").exists()]


def journals(out):
    """Task id -> the lines of its journal."""
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (out / "x" / "cluster").glob("*.jsonl")
    }


def turns(out):
    """Task id -> how often it began."""
    return {task: sum(line["event"] == "began" for line in lines) for task, lines in journals(out).items()}


def results(out):
    """All that does not depend on where the sweep ran: the table, and each job's predictions to the bit."""
    with (out / "x" / "comparison" / "table.csv").open(newline="") as stream:
        table = [{key: value for key, value in row.items() if key not in MEASURED} for row in csv.DictReader(stream)]
    predictions = {path.parent.name: path.read_bytes() for path in (out / "x").glob("*/predictions.parquet")}
    assert (len(table), len(predictions)) == (4, JOBS)
    return table, predictions
