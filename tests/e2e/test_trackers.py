"""Trackers as a user meets them: chosen on the command line, later too, and never in the way of a result."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY

CANARY = "s3cret-canary-of-40-characters-0123456789"


@pytest.fixture
def tl(tmp_path, monkeypatch):
    """Run a command in a process of its own, with no account and an empty home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tl_experiments", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return call


def test_several_trackers_live_and_later(tl, tmp_path, monkeypatch):
    """One sweep, first without a tracker; then entered by the same command, to which a job is added."""
    sweep = tmp_path / "outputs" / "x"
    command = ["train", "-m", *TINY, "name=x", "executor.jobs_per_device=2"]
    assert tl(*command, "seed=0,1").returncode == 0
    jobs = {path.parent.name for path in sweep.glob("*/record.json")}
    stamps = {path: path.stat().st_mtime_ns for path in sweep.glob("*/record.json")}

    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    trackers = ["tracker=[csv,wandb,mlflow]", f"tracker.mlflow.uri=http://anna:{CANARY[:20]}@127.0.0.1:9"]
    done = tl(*command, "seed=0,1,2", *trackers)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # not trained again
    with (sweep / "csv" / "runs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["state"] for row in rows] == ["ok"] * 3
    assert jobs < {row["run"] for row in rows}
    assert len(list(sweep.glob("wandb/offline-run-*"))) == 3
    assert "wandb: runs written offline: 3; to upload them: wandb sync outputs/x/wandb/offline-run-*" in done.stderr
    assert "mlflow: not all is entered" in done.stderr
    assert "Verdict" in done.stdout

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert [path for path in files if CANARY[:20].encode() in path.read_bytes()] == []
    assert CANARY[:20] not in done.stdout + done.stderr


@pytest.mark.parametrize(("tracker", "module"), [("mlflow", "mlflow"), ("tensorboard", "tensorboard")])
def test_a_tracker_that_is_not_installed(tracker, module, tmp_path):
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"sys.argv = ['tl', 'train', 'tracker={tracker}', *{TINY!r}]\n"
        "from tl_experiments.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    line = f"error: tracker={tracker}: {module} not installed -> pip install 'tl-experiments[{tracker}]'"
    assert done.stderr.splitlines() == [line]
    assert not (Path(tmp_path) / "outputs").exists()


def test_a_failing_job_is_named_last_and_marked(tl, tmp_path):
    done = tl("train", "-m", *TINY, "name=x", "optimizer.lr=1e-3,1e30", "optimizer=sgd", "tracker=[csv,wandb]")
    assert done.returncode == 1
    assert "diverged" in done.stderr.splitlines()[-1]
    with (tmp_path / "outputs" / "x" / "csv" / "runs.csv").open() as stream:
        states = {row["state"]: row["cause"] for row in csv.DictReader(stream)}
    assert states.keys() == {"ok", "diverged"}
    assert "not finite" in states["diverged"]
