"""What W&B shows of a finished run besides numbers: charts, tables with pictures, and stored files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import wandb
from PIL import Image

from tl_experiments.data.location import located
from tl_experiments.metrics.stored import PREDICTIONS_FILE
from tl_experiments.records import RECORD_FILE
from tl_experiments.tracking.entries import short, split_key, summary
from tl_experiments.tracking.runs import Run
from tl_experiments.tracking.tables import Table, calibration, chosen_predictions, confusion, per_class

# A run's config and ids of images -> a small picture of each, in a format that Pillow reads; some may be absent
Pictures = Callable[[Mapping[str, Any], Sequence[str]], Mapping[str, bytes]]
_FILES = {
    "checkpoint": ("checkpoint.safetensors", "checkpoint.json"),
    "predictions": (PREDICTIONS_FILE,),
    "record": (RECORD_FILE,),
}
_TYPE = {"checkpoint": "model", "predictions": "predictions", "record": "record"}


def define_axes(run: Any) -> None:
    """Curves of all runs over ``epoch``, with ``step`` and ``seconds`` to choose; lowest and highest of val's kept."""
    for axis in ("step", "epoch", "seconds"):
        run.define_metric(axis, hidden=True)
    for keys in ("train_*", "learning_rate", "phase"):
        run.define_metric(keys, step_metric="epoch")
    run.define_metric("val_*", step_metric="epoch", summary="min,max,last")


def views(run: Run, images: int, pictures: Pictures) -> dict[str, Any]:
    """``confusion_matrix/<split>`` and the like; W&B makes a section of each word before the slash.

    Args:
        run: A finished one.
        images: Predictions that are shown one by one, of each test set.
        pictures: Where their pictures come from.
    """
    found: dict[str, Any] = {}
    for split, predictions in run.predictions().items():
        key = split_key(split)
        found[f"confusion_matrix/{key}"] = _confusion_matrix(confusion(predictions), f"Confusion matrix, {key}")
        found[f"per_class/{key}"] = _table(per_class(predictions))
        found[f"calibration/{key}"] = wandb.plot.line(
            _table(calibration(predictions)), "confidence", "accuracy", title=f"Calibration, {key}", split_table=True
        )
        if images and split != "val":
            chosen = chosen_predictions(predictions, images)
            data = {} if run.record is None else run.record.data
            shown = pictures(located(run.facts["config"], data), chosen.items)
            found[f"predictions/{key}"] = _with_images(chosen.table, [_image(shown.get(item)) for item in chosen.items])
    return found


def artifacts(run: Run, wanted: Sequence[str], sweep: str) -> Iterator[tuple[wandb.Artifact, list[str]]]:
    """``checkpoint-<job>``, ``predictions-<job>``, ``record-<job>``, each with its aliases.

    What a run does not have, such as the checkpoint of one that was told to keep none, is left out.
    """
    for kind in wanted:
        paths = [path for name in _FILES[kind] if (path := run.folder / name).is_file()]
        if not paths:
            continue
        artifact = wandb.Artifact(f"{kind}-{run.id}", _TYPE[kind], metadata={**run.facts["arm"], **summary(run)})
        for path in paths:  # a finished run's files do not change, so W&B needs no copies
            artifact.add_file(str(path.resolve()), policy="immutable", skip_cache=True)
        yield artifact, ["latest", f"seed-{run.facts['seed']}", _alias(sweep)]


def _confusion_matrix(cells: Table, title: str) -> Any:
    """What ``wandb.plot.confusion_matrix`` makes of predictions, from cells that are counted already."""
    columns = ("Actual", "Predicted", "nPredictions")
    fields = {column: column for column in columns}
    table = _table(Table(columns, cells.rows))
    return wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": title}, split_table=True)


def _table(table: Table) -> wandb.Table:
    columns: list[str | int] = [*table.columns]
    return wandb.Table(columns=columns, data=[list(row) for row in table.rows])


def _with_images(table: Table, images: Sequence[wandb.Image | None]) -> wandb.Table:
    rows = tuple((image, *row) for image, row in zip(images, table.rows, strict=True))
    return _table(Table(("image", *table.columns), rows))


def _image(encoded: bytes | None) -> wandb.Image | None:
    return None if encoded is None else wandb.Image(Image.open(io.BytesIO(encoded)), file_type="jpg")


def _alias(name: str) -> str:
    """W&B's aliases have no ``/`` and no ``:``."""
    return short(name.replace("/", "_").replace(":", "_"), 64)
