"""The files of a run beside its record: predictions and checkpoint, each written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save
from torch import nn

from tl_experiments.backbones.locate import CHECKPOINT_FILE
from tl_experiments.data.items import Split
from tl_experiments.records import write_atomically
from tl_experiments.training.metrics import Predictions

PREDICTIONS_FILE = "predictions.parquet"


def write_predictions(
    folder: Path, splits: Mapping[Split, Predictions], item_ids: Mapping[Split, Sequence[str]], classes: Sequence[str]
) -> Path:
    """Write ``predictions.parquet``: split, item, label and prediction by name, and one probability a class.

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
    return write_atomically(folder / PREDICTIONS_FILE, stream.getvalue())


def write_checkpoint(folder: Path, model: nn.Module, facts: Mapping[str, Any]) -> Path:
    """Write ``checkpoint.safetensors`` and beside it ``checkpoint.json`` with ``facts`` and the file's sha256."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    data = save(_without_sharing(state))
    path = write_atomically(folder / CHECKPOINT_FILE, data)
    side = {**facts, "sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(path.with_suffix(".json"), json.dumps(side, indent=2, ensure_ascii=False) + "\n")
    return path


def _without_sharing(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """safetensors refuses tensors that share memory, as tied weights do: each gets its own."""
    seen: set[int] = set()
    own = {}
    for name, tensor in state.items():
        own[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return own
