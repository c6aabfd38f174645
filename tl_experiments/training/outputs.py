"""What a run predicted, written whole or not at all, and the numbers of its record."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.items import Split
from tl_experiments.metrics.scores import summary
from tl_experiments.metrics.stored import PREDICTIONS_FILE
from tl_experiments.metrics.stored import Predictions as Stored
from tl_experiments.records import write_atomically
from tl_experiments.training.history import History
from tl_experiments.training.metrics import Predictions


def write_results(
    folder: Path, data: TransferDataModule, history: History, tests: Mapping[Split, Predictions]
) -> dict[str, dict[str, float]]:
    """Write the predictions of a finished run on val, as they were when it was chosen, and on its test sets.

    Returns:
        Split -> metrics, computed from what was written.
    """
    assert history.best_predictions is not None
    outputs = {"val": history.best_predictions, **tests}
    stored = {
        split: Stored(
            data.item_ids(split),
            predictions.label.numpy(),
            predictions.logits.double().softmax(1).numpy(),
            data.spec.classes,
        )
        for split, predictions in outputs.items()
    }
    write_predictions(folder, stored)
    return {split: summary(predictions) for split, predictions in stored.items()}


def write_predictions(folder: Path, splits: Mapping[Split, Stored]) -> Path:
    """Write ``predictions.parquet``: split, item, label and prediction by name, and one probability a class.

    The record, which follows, puts the names of all files of the folder on the disk.

    Args:
        folder: The run's folder.
        splits: Split -> predictions; one split or more, all with the same classes.
    """
    tables = []
    for split, predictions in splits.items():
        names, flat = predictions.classes, pa.array(predictions.probabilities.reshape(-1))
        columns: dict[str, Any] = {
            "split": [split] * len(predictions.items),
            "item": list(predictions.items),
            "label": [names[label] for label in predictions.labels.tolist()],
            "prediction": [names[label] for label in predictions.predicted.tolist()],
            "probabilities": pa.FixedSizeListArray.from_arrays(flat, len(names)),
        }
        tables.append(pa.table(columns))
    classes = json.dumps(list(next(iter(splits.values())).classes))
    stream = io.BytesIO()
    pq.write_table(pa.concat_tables(tables).replace_schema_metadata({"classes": classes}), stream)
    return write_atomically(folder / PREDICTIONS_FILE, stream.getvalue(), sync_folder=False)
