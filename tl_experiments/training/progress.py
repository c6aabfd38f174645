"""A bar of optimizer steps on a terminal; elsewhere the lines of ``History`` say enough."""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tl_experiments.training.groups import Told
from tl_experiments.training.phases import PhaseSteps


def progress_callbacks(phase: PhaseSteps, total: int, progress: Told) -> list[pl.Callback]:
    """The phase's bar, if somebody looks at it, and a call of ``progress`` after each step of ``total``."""
    return [StepCalls(total, progress), *([StepBar(phase)] if sys.stderr.isatty() else [])]


class StepCalls(pl.Callback):
    """Tells somebody else of each step."""

    def __init__(self, total: int, progress: Told) -> None:
        self._total, self._progress = total, progress

    def on_train_batch_end(self, _trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self._progress(module.step, self._total)  # type: ignore[arg-type]


class StepBar(pl.Callback):
    """Steps done and time left of one phase. It vanishes at the end, and log lines pass above it."""

    def __init__(self, phase: PhaseSteps) -> None:
        self._progress = Progress(
            TextColumn("phase {task.fields[number]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps,"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=phase.steps, number=phase.number)

    def on_train_start(self, *_: Any) -> None:
        self._progress.start()

    def on_train_batch_end(self, *_: Any) -> None:
        self._progress.advance(self._task)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Also after an error, so that its line is not drawn over."""
        self._progress.stop()
