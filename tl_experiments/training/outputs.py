"""What a run predicted, written whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.items import Split
from tl_experiments.records import write_atomically
from tl_experiments.training.history import History
from tl_experiments.training.metrics import Predictions

PREDICTIONS_FILE = "predictions.parquet"


def write_results(folder: Path, data: TransferDataModule, history: History, test: Predictions) -> Path:
    """Write the predictions of a finished run on val, as they were when it was chosen, and on test."""
    assert history.best_predictions is not None
    splits: dict[Split, Predictions] = {"val": history.best_predictions, "test": test}
    return write_predictions(folder, splits, {split: data.item_ids(split) for split in splits}, data.spec.classes)


def write_predictions(
    folder: Path, splits: Mapping[Split, Predictions], item_ids: Mapping[Split, Sequence[str]], classes: Sequence[str]
) -> Path:
    """Write ``predictions.parquet``: split, item, label and prediction by name, and one probability a class.

    The record, which follows, puts the names of all files of the folder on the disk.

    Args:
        folder: The run's folder.
        splits: Split -> predictions, in the order of ``item_ids``.
        item_ids: Split -> names of its items.
        classes: Class names in label order.
    """
    tables = []
    for split, predictions in splits.items():
        probabilities = predictions.logits.double().softmax(1)
        columns: dict[str, Any] = {
            "split": [split] * len(predictions.label),
            "item": list(item_ids[split]),
            "label": [classes[label] for label in predictions.label.tolist()],
            "prediction": [classes[label] for label in predictions.logits.argmax(1).tolist()],
            "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(probabilities.flatten().numpy()), len(classes)),
        }
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables).replace_schema_metadata({"classes": json.dumps(list(classes))})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return write_atomically(folder / PREDICTIONS_FILE, stream.getvalue(), sync_folder=False)
