"""Sweeps made on the spot, with predictions and curves that agree with their records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.analysis.conftest import CONFIG
from tl_experiments.metrics.scores import summary
from tl_experiments.metrics.stored import PREDICTIONS_FILE, Predictions
from tl_experiments.records import METRICS_FILE, RunRecord

STRATEGIES = ("feature_extraction", "full", "lp_ft", "last_n_blocks(n=2)", "discriminative(decay=0.75)", "from_scratch")
SKILL = dict(zip(STRATEGIES, (2.6, 2.4, 2.7, 2.5, 2.2, 0.8), strict=True))
RANDOM = {"source": "random", "sha256": None, "matched": 0, "total": 312}
LEARNT = {"source": "file", "sha256": "ab" * 32, "matched": 312, "total": 312}
CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
Sweep = Callable[..., Path]


def predictions(rng: np.random.Generator, classes: Sequence[str], items: Sequence[str], skill: float) -> Predictions:
    """Softmax of noise, in which the right class stands out by ``skill``."""
    labels = np.arange(len(items)) % len(classes)
    logits = rng.normal(size=(len(items), len(classes)))
    logits[np.arange(len(items)), labels] += skill
    exponents = np.exp(logits)
    # stored as float32, as a run does
    rounded = (exponents / exponents.sum(1, keepdims=True)).astype(np.float32).astype(np.float64)
    return Predictions(tuple(items), labels, rounded, tuple(classes))


def write_run(
    folder: Path,
    arm: Mapping[str, str],
    seed: int,
    *,
    classes: Sequence[str] = CLASSES,
    items: Mapping[str, Sequence[str]],
    skill: float = 2.0,
    epochs: int = 12,
    notes: Sequence[str] = (),
    rng: np.random.Generator,
) -> RunRecord:
    """A finished run: record, predictions, curve."""
    found = {split: predictions(rng, classes, names, skill) for split, names in items.items()}
    metrics = {split: summary(each) for split, each in found.items()}
    job_id = folder.name
    config = json.loads(json.dumps(CONFIG)) | {
        "seed": seed, "freeze_strategy": {"name": arm["freeze_strategy"].partition("(")[0]},
    }  # fmt: skip
    config["backbone"]["name"] = arm["backbone"]
    config["trainer"]["max_epochs"] = epochs
    record = RunRecord(
        job_id=job_id, config=config, arm=arm, seed=seed, classes=tuple(classes),
        data={"fingerprint": "f" * 64, "sizes": {name: len(each) for name, each in items.items()} | {"train": 50},
              "labels_spent": 100, "notes": list(notes)},
        metrics=metrics, best_step=10, last_step=10, accumulation=1, phases=({"first_step": 0, "steps": 10},),
        trained_parameters=5_130 if "extraction" in arm["freeze_strategy"] else 4_900_000, total_parameters=4_920_000,
        learning_rate=1e-3, weights=RANDOM if arm["freeze_strategy"] == "from_scratch" else LEARNT, still_rising=False,
        wall_clock_s=2.0 + 9 * skill + seed, pretraining_s=0.0, peak_memory_bytes=int(skill * 2**29),
        environment={"device": "a processor", "python": "3.11", "packages": {"torch": "2.15.0"}},
        work={"images_decoded": 100, "images_encoded": 0, "cached_phases": [], "together": 1},
    )  # fmt: skip
    record.write(folder)
    columns: dict[str, Any] = {"split": [], "item": [], "label": [], "prediction": [], "probabilities": []}
    for split, each in found.items():
        columns["split"] += [split] * len(each.items)
        columns["item"] += each.items
        columns["label"] += [classes[label] for label in each.labels]
        columns["prediction"] += [classes[label] for label in each.predicted]
        columns["probabilities"] += each.probabilities.tolist()
    columns["probabilities"] = pa.array(columns["probabilities"], pa.list_(pa.float32()))
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({"classes": json.dumps(list(classes))}), folder / PREDICTIONS_FILE)
    best = metrics["val"]["accuracy"]
    lines = [
        {"step": epoch, "epoch": float(epoch), "val_accuracy": best * (1 - 0.8 * 0.6**epoch), "seconds": 0.5 + epoch}
        for epoch in range(epochs + 1)
    ]
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return record


def write_sweep(
    folder: Path,
    *,
    arms: Sequence[str] = STRATEGIES,
    seeds: Sequence[int] = (0, 1, 2),
    dataset: str = "flowers, 5 shots",
    backbones: Sequence[str] = ("resnet10t",),
    classes: Sequence[str] = CLASSES,
    item: Callable[[str, int], str] = "{}/{}.jpg".format,
    images: int = 60,
    tests: Sequence[str] = (),
    lost: Sequence[Mapping[str, Any]] = (),
    costs: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """A sweep of backbones x strategies x seeds."""
    rng = np.random.default_rng(0)
    items = {split: [item(split, number) for number in range(images)] for split in ("val", "test", *tests)}
    jobs: list[dict[str, Any]] = []
    for backbone in backbones:
        for strategy in arms:
            for seed in seeds:
                arm = {"dataset": dataset, "backbone": backbone, "head": "linear", "freeze_strategy": strategy}
                job_id = hashlib.sha256(repr((arm, seed)).encode()).hexdigest()[:12]
                skill = SKILL.get(strategy, 2.0) + 0.1 * rng.normal()
                write_run(folder / job_id, arm, seed, classes=classes, items=items, skill=skill, notes=notes, rng=rng)
                overrides = [f"backbone={backbone}", f"freeze_strategy={strategy.partition('(')[0]}", f"seed={seed}"]
                jobs.append({"id": job_id, "overrides": overrides, "state": "ok", "cause": None, "log": None,
                             "seconds": 1.0})  # fmt: skip
    content = {"schema_version": 1, "name": folder.name, "commands": [], "plan": {"costs": list(costs)},
               "jobs": [*jobs, *lost]}  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def make_sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """``make_sweep(**options)`` -> the folder of a sweep."""
    return lambda name="sweep", **options: write_sweep(tmp_path_factory.mktemp("report") / name, **options)
