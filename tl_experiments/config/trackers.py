"""The group ``tracker``: any number of choices at once, each with options of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from tl_experiments.config.ranges import require


@dataclass(frozen=True, kw_only=True)
class CsvTracker:
    """Tables in the sweep's folder: a row a validation, a row a run, and a row a class and split."""

    name: Literal["csv"]


@dataclass(frozen=True, kw_only=True)
class TensorBoardTracker:
    """TensorBoard's event files in the sweep's folder."""

    name: Literal["tensorboard"]


@dataclass(frozen=True, kw_only=True)
class MlflowTracker:
    """MLflow.

    Args:
        uri: Tracking URI; null is ``MLFLOW_TRACKING_URI`` of the environment, or else ``<output_dir>/mlflow.db``.
        experiment: Name of the experiment; null is the sweep's.
    """

    name: Literal["mlflow"]
    uri: str | None
    experiment: str | None


@dataclass(frozen=True, kw_only=True)
class WandbTracker:
    """Weights & Biases.

    Args:
        project: W&B project.
        entity: W&B team or user; null is the account's default.
        mode: ``auto`` is online with an API key and a server that answers, offline without.
        images: Predictions shown one by one for each test set, with small pictures of the images; 0 is none.
        artifacts: What of a finished run is stored there as well.
    """

    name: Literal["wandb"]
    project: str
    entity: str | None
    mode: Literal["auto", "online", "offline"]
    images: int
    artifacts: tuple[Literal["checkpoint", "predictions", "record"], ...]

    def __post_init__(self) -> None:
        fits = 0 < len(self.project) <= 128 and not set(self.project) & set("/\\#?%:")
        require(fits, "project", repr(self.project), r"1 to 128 characters without / \ # ? % :")
        require(0 <= self.images <= 1000, "images", self.images, "0 to 1000")


@dataclass(frozen=True, kw_only=True)
class Trackers:
    """What was chosen; null is not. With ``tracker=none`` all are null."""

    csv: CsvTracker | None
    tensorboard: TensorBoardTracker | None
    mlflow: MlflowTracker | None
    wandb: WandbTracker | None

    def chosen(self) -> dict[str, dict[str, Any]]:
        """Options of each chosen tracker, by its name."""
        plain = dataclasses.asdict(self)
        return {
            name: {key: value for key, value in options.items() if key != "name"}
            for name, options in plain.items()
            if options is not None
        }
