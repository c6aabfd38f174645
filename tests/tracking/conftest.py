"""A sweep's folder made by hand, as training leaves it at any moment."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tl_experiments.metrics import scores
from tl_experiments.metrics.stored import Predictions
from tl_experiments.records import RunRecord
from tl_experiments.training.outputs import write_predictions

ARM = {"dataset": "digits", "backbone": "resnet18", "head": "linear", "freeze_strategy": "last_n_blocks(n=2)"}
CONFIG = {"seed": 0, "backbone": {"name": "resnet18", "kwargs": {}}, "optimizer": {"lr": None}}


class SweepFolder:
    """Writes what a run would have written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[str, dict[str, Any]] = {}

    def begin(self, run: str, **facts: Any) -> None:
        (self.folder / run).mkdir(parents=True, exist_ok=True)
        self.facts = {"job_id": run, "config": CONFIG, "arm": ARM, "seed": 0, "learning_rate": 1e-3, **facts}
        (self.folder / run / "start.json").write_text(json.dumps(self.facts))
        self.state(run, "running")

    def state(self, run: str, state: str, cause: str | None = None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.jobs[run] = {"id": run, "overrides": [], "state": state, "cause": cause, "log": None, "seconds": None}
        (self.folder / "sweep.json").write_text(json.dumps({"jobs": list(self.jobs.values())}))

    def line(self, run: str, step: int, accuracy: float = 0.5) -> None:
        """All values are exact in single precision, which is what TensorBoard keeps."""
        values = {
            "step": step, "epoch": step / 4, "phase": 0, "train_loss": None if step == 0 else 1.5,
            "val_accuracy": accuracy, "val_nll": 0.25, "seconds": step / 8,
        }  # fmt: skip
        with (self.folder / run / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(values) + "\n")

    def finish(self, run: str, predictions: Mapping[str, Predictions] | None = None) -> None:
        metrics = {"val": {"accuracy": 0.75, "nll": 0.5}, "test": {"accuracy": 0.625, "nll": 0.75}}
        given = {key: value for key, value in self.facts.items() if key != "job_id"}
        if predictions is not None:
            metrics |= {split: scores.summary(one) for split, one in predictions.items()}
            write_predictions(self.folder / run, predictions)
        RunRecord(
            job_id=run, **given, classes=("a", "b"), data={}, metrics=metrics, best_step=4,
            last_step=4, accumulation=1, phases=(),
            trained_parameters=1000, total_parameters=2000, weights={}, still_rising=False, wall_clock_s=2.5,
            pretraining_s=0.0, peak_memory_bytes=4096, environment={},
        ).write(self.folder / run)  # fmt: skip
        self.state(run, "ok")

    def whole(self, run: str, predictions: Mapping[str, Predictions] | None = None, **facts: Any) -> None:
        self.begin(run, **facts)
        for step in (0, 4, 8):
            self.line(run, step, step / 16)
        self.finish(run, predictions)


def predicted(n: int = 40, classes: tuple[str, ...] = ("a", "b", "c", "d"), seed: int = 0) -> Predictions:
    """Predictions of ``n`` images of digits, better than chance; the last class has no image."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % (len(classes) - 1)
    logits = rng.normal(size=(n, len(classes))) + 2.0 * (labels[:, None] == np.arange(len(classes)))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(tuple(f"digits/{i}" for i in range(n)), labels, probabilities, classes)


SUMMARY = {
    "best_val_accuracy": 0.75, "best_val_nll": 0.5, "test_accuracy": 0.625, "test_nll": 0.75, "best_step": 4,
    "trained_parameters": 1000, "total_parameters": 2000, "still_rising": False, "wall_clock_s": 2.5,
    "pretraining_s": 0.0, "peak_memory_bytes": 4096,
}  # fmt: skip
CURVE_KEYS = {"step", "epoch", "phase", "train_loss", "val_accuracy", "val_nll", "seconds"}


@pytest.fixture
def sweep(tmp_path):
    return SweepFolder(tmp_path / "outputs" / "sweep")


@pytest.fixture
def said(caplog):
    """The lines that a command shows its user, as a function."""
    caplog.set_level(logging.INFO, "tl_experiments")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("tl_experiments")]


@pytest.fixture(autouse=True)
def nobody_at_home(monkeypatch, tmp_path):
    """No account of whoever runs the tests is used, and nothing is written to the home folder."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(logging.getLogger("tl_experiments"), "propagate", True)


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return found
