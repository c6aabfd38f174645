"""W&B offline, read back from the file that it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tl_experiments.tracking.wandb import push
from tl_experiments.training.run import run


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def inspect(path: Path, *flags: str):
    tool = Path(sys.executable).with_name("wandb")
    done = subprocess.run([tool, "leet", "inspect", *flags, "--json", path], capture_output=True, text=True, check=True)
    return done.stdout


def test_runs_are_entered_offline_without_a_key(tiny, tmp_path, no_key, monkeypatch):
    monkeypatch.setenv("CANARY", "s3cret-canary")
    cfg = tiny("tracker=wandb")
    sweep = tmp_path / "sweep"
    record = run(cfg, sweep / "job")
    lines = list(push(sweep, cfg.tracker))
    assert lines == [f"wandb: runs written offline: 1; to upload them: wandb sync {sweep}/wandb/offline-run-*"]
    (file,) = sweep.glob("wandb/offline-run-*/*.wandb")
    summary = inspect(file, "--summary")
    assert str(record.metrics["test"]["accuracy"])[:8] in summary
    assert "feature_extraction" in inspect(file)
    everything = b"".join(path.read_bytes() for path in sweep.rglob("*") if path.is_file())
    assert b"s3cret-canary" not in everything
    assert list(push(sweep, cfg.tracker)) == []  # entered once


def test_a_dead_server_costs_no_result(tiny, tmp_path, no_key, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("tl_experiments.tracking.wandb._INIT_TIMEOUT_S", 3)
    cfg = tiny("tracker=wandb")
    run(cfg, tmp_path / "sweep" / "job")
    lines = list(push(tmp_path / "sweep", cfg.tracker))
    assert lines[0].startswith("wandb: no answer (")
    assert lines[1].startswith("wandb: runs written offline: 1")
    assert json.loads((tmp_path / "sweep" / "job" / "wandb.json").read_text()) == {"mode": "offline"}
