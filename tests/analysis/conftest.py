"""Records made on the spot: the smallest config that has every group, and metrics that the test decides."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tl_experiments.metrics.scores import summary
from tl_experiments.metrics.stored import Predictions
from tl_experiments.records import RunRecord
from tl_experiments.training.outputs import write_predictions

CONFIG: Mapping[str, Any] = {
    "backbone": {"name": "resnet10t", "weights": "pretrained", "kwargs": {}, "preprocessing": {"image_size": None}},
    "head": {"name": "linear"},
    "dataset": {"name": "digits", "shots": 5, "preload_max_bytes": 1000},
    "augmentation": {"name": "none"},
    "optimizer": {"name": "adamw", "lr": None, "lr_factor": 1.0, "weight_decay": 0.05, "betas": [0.9, 0.999]},
    "scheduler": {"name": "cosine", "warmup_fraction": 0.1, "final_fraction": 0.0},
    "objective": {"name": "supervised", "label_smoothing": 0.0},
    "trainer": {"name": "default", "max_epochs": 20, "batch_size": 32, "eval_batch_size": 256, "num_workers": 0},
    "tracker": {"csv": None, "wandb": None},
    "executor": {"name": "local", "jobs": None},
    "name": None,
    "output_dir": "outputs",
}
TRAINED = {"feature_extraction": 5_130, "last_n_blocks(n=2)": 3_700_000}


def _record(
    strategy: str = "full",
    seed: int = 0,
    *,
    val: float = 0.9,
    test: float = 0.9,
    nll: float = 0.3,
    settings: Mapping[str, object] | None = None,
    arm: Mapping[str, str] | None = None,
    fingerprint: str = "f" * 8,
    **fields: Any,
) -> RunRecord:
    """One run; ``settings`` are dotted keys of the config."""
    config = copy.deepcopy(dict(CONFIG)) | {"seed": seed, "freeze_strategy": {"name": strategy.partition("(")[0]}}
    for key, value in (settings or {}).items():
        *path, leaf = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node[leaf] = value
    labels = {"dataset": "digits, 5 shots", "backbone": "resnet10t", "head": "linear", "freeze_strategy": strategy}
    labels |= arm or {}
    job_id = "-".join([*labels.values(), str(seed), *(f"{k}={v}" for k, v in (settings or {}).items())])
    content: dict[str, Any] = {
        "job_id": job_id.replace(" ", "_"),
        "config": config,
        "arm": labels,
        "seed": seed,
        "classes": ("0", "1"),
        "data": {"fingerprint": fingerprint, "sizes": {"test": 360}, "labels_spent": 100, "notes": []},
        "metrics": {
            "val": {"accuracy": val, "macro_f1": val, "nll": nll},
            "test": {"accuracy": test, "macro_f1": test - 0.01, "nll": nll},
        },
        "best_step": 10,
        "last_step": 10,
        "accumulation": 1,
        "phases": (),
        "trained_parameters": TRAINED.get(strategy, 4_920_000),
        "total_parameters": 4_920_000,
        "learning_rate": 1e-3,
        "weights": {"source": "pretrained", "sha256": "ab", "matched": 10},
        "still_rising": False,
        "wall_clock_s": 4.0,
        "pretraining_s": 0.0,
        "peak_memory_bytes": 512 * 2**20,
        "environment": {},
    }
    return RunRecord(**(content | fields))


def _sweep(
    means: Mapping[str, float], *, seeds: Iterable[int] = range(5), factors: Iterable[float] = (1.0,), sd: float = 0.01
) -> list[RunRecord]:
    """Strategies x learning-rate factors x seeds; the last factor is the best, seeds shift every arm alike."""
    rng = np.random.default_rng(0)
    factors = tuple(factors)
    shifts = {seed: rng.normal(0, sd) for seed in seeds}
    return [
        _record(
            strategy,
            seed,
            val=mean + shift - 0.02 * (len(factors) - 1 - index) + rng.normal(0, sd / 3) + 0.005,
            test=mean + shift - 0.02 * (len(factors) - 1 - index) + rng.normal(0, sd / 3),
            nll=1 - mean,
            settings={"optimizer.lr_factor": factor},
            wall_clock_s=3 + 4 * mean,
        )
        for strategy, mean in means.items()
        for index, factor in enumerate(factors)
        for seed, shift in shifts.items()
    ]


def _predictions(
    rng: np.random.Generator, accuracy: float, n: int = 60, n_classes: int = 3, *, split: str = "test"
) -> Predictions:
    """Predictions of ``n`` images, right with the probability ``accuracy``."""
    labels = np.arange(n) % n_classes
    said = np.where(rng.random(n) < accuracy, labels, (labels + 1) % n_classes)
    logits = rng.normal(size=(n, n_classes)) + 8 * np.eye(n_classes)[said]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    classes = tuple(f"class {label}" for label in range(n_classes))
    return Predictions(tuple(f"{split}/{i}.png" for i in range(n)), labels.astype(np.int64), p, classes)


def _store(
    folder: Path, records: Iterable[RunRecord], *, splits: Iterable[str] = ("val", "test"), **fields: Any
) -> Path:
    """A sweep on the disk: records with predictions of about their accuracies, from which their metrics come."""
    jobs = []
    for number, record in enumerate(records):
        rng = np.random.default_rng(number)
        predictions = {
            split: _predictions(rng, record.metrics["val" if split == "val" else "test"]["accuracy"], split=split)
            for split in splits
        }
        metrics = {split: summary(found) for split, found in predictions.items()}
        sizes = {split: len(found.items) for split, found in predictions.items()}
        stored = dataclasses.replace(
            record,
            job_id=f"job{number:03d}",
            metrics=metrics,
            classes=predictions["test"].classes,
            data={**record.data, "sizes": sizes},
        )
        stored.write(folder / stored.job_id)
        write_predictions(folder / stored.job_id, predictions)
        overrides = [f"seed={record.seed}"]
        jobs.append({"id": stored.job_id, "overrides": overrides, "state": "ok", "cause": None, "log": None})
        jobs[-1] |= {"seconds": 1.0}
    content = {"schema_version": 1, "name": "x", "commands": [], "plan": {}, "jobs": jobs}
    (folder / "sweep.json").write_text(json.dumps(content | fields))
    return folder


@pytest.fixture(scope="session")
def store_sweep() -> Callable[..., Path]:
    return _store


@pytest.fixture(scope="session")
def make_record() -> Callable[..., RunRecord]:
    return _record


@pytest.fixture(scope="session")
def make_sweep() -> Callable[..., list[RunRecord]]:
    return _sweep
