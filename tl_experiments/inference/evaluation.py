"""A run's model on a dataset: metrics, confusion and predictions, written beside the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_experiments.config.datasets import Dataset
from tl_experiments.data.items import SPLITS, Item, Source
from tl_experiments.data.sources import divide, open_source
from tl_experiments.data.splits import Indices
from tl_experiments.errors import ConfigError
from tl_experiments.inference.dataset import ALL, label_map, usual_split
from tl_experiments.inference.loaded import LoadedModel
from tl_experiments.inference.pipeline import run_through
from tl_experiments.metrics.scores import PerClass, confusion, per_class, summary
from tl_experiments.metrics.stored import Predictions
from tl_experiments.records import RunRecord, write_atomically
from tl_experiments.safe_text import redacted
from tl_experiments.training.identity import dataset_label
from tl_experiments.training.outputs import write_predictions

EVALUATIONS_FOLDER = "evaluations"
EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Args:
        predictions: Of every image, in the model's classes.
        metrics: As ``metrics.scores.summary`` has them.
        folder: With ``evaluation.json`` and ``predictions.parquet``.
        notes: What a reader must know, in whole sentences.
    """

    predictions: Predictions
    metrics: Mapping[str, float]
    folder: Path
    notes: tuple[str, ...]

    @property
    def by_class(self) -> PerClass:
        """Precision, recall, F1 and AUROC of each class."""
        return per_class(self.predictions)


def evaluate(
    folder: Path,
    model: LoadedModel,
    dataset: Dataset,
    *,
    split: str | None = None,
    renamed: Mapping[str, str] | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Predict a split of a dataset and write what comes out into ``<folder>/evaluations/<dataset>-<split>-<hash>/``.

    On the run's own dataset and its test split the metrics are those of the record.

    Args:
        folder: Of the run.
        model: Of the run.
        dataset: Whose images; divided with the run's seed where it is not split.
        split: Which of them: ``train``, ``val``, ``test``, ``test/<name>`` of a further test set, or ``all``: every
            image of the first three, also those that ``shots`` or ``label_fraction`` leave out. None is what
            ``usual_split`` says: ``test``, or all of a dataset that is neither the run's own nor split.
        renamed: Class of the dataset -> class of the model, where the names differ.
        batch_size: Images of a forward pass; null is the run's own, whose rounding is then that of the record.

    Raises:
        DataError: The dataset cannot be used as it stands, an image cannot be decoded, or it has a class that the model
            does not know.
        ConfigError: Images of other channels than the model takes, or a name in ``renamed`` that is not there.
    """
    record = RunRecord.read(folder)
    if dataset.channels != (expected := model.preprocessing.channels):
        what = f"{dataset.channels}, the model takes images of {expected}"
        raise ConfigError("dataset.channels", what, f"dataset.channels={expected}, or another run")
    source = open_source(dataset)
    labels = np.array(label_map(source.classes, model.classes, renamed or {}))
    split, about_split = usual_split(source, dataset, record) if split is None else (split, ())
    items, notes = _items(source, dataset, split, record.seed)
    notes = (*about_split, *notes)
    batch_size = record.config["trainer"]["eval_batch_size"] if batch_size is None else batch_size
    outputs = run_through(model, lambda number: source.load(int(items[number])), len(items), batch_size)
    for error in outputs.errors.values():
        raise error
    chosen = [source.items[index] for index in items]
    predictions = Predictions(
        tuple(item.id for item in chosen), labels[[item.label for item in chosen]], outputs.probabilities, model.classes
    )
    absent = len(model.classes) - len(np.unique(predictions.labels))
    if absent:
        notes = (*notes, f"{absent} of the model's {len(model.classes)} classes have no image here and are in no mean.")
    evaluation = Evaluation(predictions, summary(predictions), folder, (*model.notes, *notes))
    return dataclasses.replace(evaluation, folder=_write(evaluation, record, dataset, split, renamed or {}, chosen))


def _items(source: Source, dataset: Dataset, split: str, seed: int) -> tuple[Indices, tuple[str, ...]]:
    if split == ALL:  # as a whole it need not be large enough to be divided
        return np.flatnonzero([item.split is None or item.split in SPLITS for item in source.items]), source.notes
    divided = divide(source, dataset, seed)
    if split not in divided.used.indices:
        known = ", ".join([*divided.used.indices, ALL])
        raise ConfigError("--split", f"the dataset has no split {split}", f"choose one of {known}")
    return divided.used.indices[split], (*source.notes, *divided.used.notes)


def _write(
    evaluation: Evaluation,
    record: RunRecord,
    dataset: Dataset,
    split: str,
    renamed: Mapping[str, str],
    items: Sequence[Item],
) -> Path:
    predictions = evaluation.predictions
    settings = {"dataset": dataclasses.asdict(dataset), "split": split, "renamed": dict(renamed)}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = evaluation.folder / EVALUATIONS_FOLDER / f"{_slug(f'{dataset_label(dataset)}-{split}')}-{key}"
    write_predictions(folder, {split: predictions})
    by_class = dataclasses.asdict(evaluation.by_class)
    content = {
        "job_id": record.job_id,
        "arm": dict(record.arm),
        "seed": record.seed,
        **settings,
        "images": len(items),
        "classes": list(predictions.classes),
        "metrics": dict(evaluation.metrics),
        "per_class": {name: _numbers(values) for name, values in by_class.items()},
        "confusion": confusion(predictions).tolist(),
        "notes": list(evaluation.notes),
    }
    text = json.dumps(redacted(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / EVALUATION_FILE, text + "\n")
    return folder


def _numbers(values: NDArray[Any]) -> list[float | int | None]:
    """JSON has no NaN: null is what a class without images has."""
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values.tolist()]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or "dataset"
