"""A finished run with what else it left on the disk, read when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tl_experiments.metrics.stored import Predictions, read_curve, read_predictions
from tl_experiments.records import METRICS_FILE, RunRecord


@dataclass(frozen=True)
class FinishedRun:
    """One run that is in the comparison.

    Args:
        record: Its record.
        folder: Where its files are.
        overrides: What the command line said for it; empty where no ``sweep.json`` tells.
    """

    record: RunRecord
    folder: Path
    overrides: tuple[str, ...] = ()

    @cached_property
    def predictions(self) -> Mapping[str, Predictions]:
        """Split (``val``, ``test``, ``test/<name>``) -> what it predicted.

        Raises:
            UserError: The file is missing or damaged.
        """
        return read_predictions(self.folder)

    @cached_property
    def curve(self) -> tuple[Mapping[str, Any], ...]:
        """Its validations in order of steps: ``step``, ``epoch``, ``seconds``, ``train_loss``, ``val_accuracy``, ..."""
        return read_curve(self.folder / METRICS_FILE)
