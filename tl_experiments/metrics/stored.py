"""The predictions that a run left: ``predictions.parquet``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl_experiments.errors import UserError

PREDICTIONS_FILE = "predictions.parquet"


@dataclass(frozen=True)
class Predictions:
    """What a model said of the ``n`` images of one split.

    Args:
        items: Ids of the images, as in ``Item.id``.
        labels: Positions in ``classes``, int64 ``(n,)``.
        probabilities: float64 ``(n, n_classes)``, each row sums to 1.
        classes: Class names in label order.
    """

    items: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Most probable class of each image, ``(n,)``; the first of equals."""
        return self.probabilities.argmax(1)


def read_predictions(folder: Path) -> dict[str, Predictions]:
    """Split (``val``, ``test``, ``test/<name>``) -> the stored predictions of a run.

    Args:
        folder: Of the run.

    Raises:
        UserError: The file is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / PREDICTIONS_FILE
    try:
        table = pq.read_table(path)
        classes = tuple(json.loads((table.schema.metadata or {})[b"classes"]))
        position = {name: label for label, name in enumerate(classes)}
        splits = np.array(table["split"].to_pylist())
        items = table["item"].to_pylist()
        labels = np.array([position[name] for name in table["label"].to_pylist()], dtype=np.int64)
        flat = table["probabilities"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        probabilities = np.asarray(flat, dtype=np.float64).reshape(len(items), len(classes))
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(
            str(path), f"no readable predictions ({error})", "run the job again, or remove its folder"
        ) from None
    found = {}
    for split in dict.fromkeys(splits.tolist()):
        here = np.flatnonzero(splits == split)
        found[split] = Predictions(tuple(items[i] for i in here), labels[here], probabilities[here], classes)
    return found
