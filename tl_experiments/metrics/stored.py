"""What a run left to compute numbers from: ``predictions.parquet`` and ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        UserError: The file is missing or damaged, or a prediction in it is not the most probable class.
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
        said = np.array([position[name] for name in table["prediction"].to_pylist()], dtype=np.int64)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(
            str(path), f"no readable predictions ({error})", "run the job again, or remove its folder"
        ) from None
    # What people read in the file must be what numbers are computed from.
    if len(wrong := np.flatnonzero(said != probabilities.argmax(1))):
        row = int(wrong[0])
        names = classes[said[row]], classes[probabilities[row].argmax()]
        raise UserError(
            str(path),
            f"{len(wrong)} predictions are not the most probable class, e.g. {names[0]} instead of {names[1]} "
            f"for {items[row]}",
            "one of the two was changed or damaged: run the job again, or remove its folder",
        )
    found = {}
    for split in dict.fromkeys(splits.tolist()):
        here = np.flatnonzero(splits == split)
        found[split] = Predictions(tuple(items[i] for i in here), labels[here], probabilities[here], classes)
    return found


def read_curve(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The lines of ``metrics.jsonl``, each step once.

    A line that was cut off, by a kill or because it is being written, is left out. Where a step stands twice, at the
    border of two phases or after a resume, the first line counts: it may have been entered already.
    """
    by_step: dict[int, Mapping[str, Any]] = {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            by_step.setdefault(values["step"], values)
    return tuple(by_step[step] for step in sorted(by_step))
