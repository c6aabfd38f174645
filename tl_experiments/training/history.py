"""What validation said on the way, and the weights that it chose."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tl_experiments.records import METRICS_FILE
from tl_experiments.training.metrics import Predictions
from tl_experiments.training.phases import PhaseSteps

logger = logging.getLogger(__name__)


@dataclass
class History:
    """Enters each validation into ``metrics.jsonl`` and keeps the best weights of the last phase, its start included.

    Better means a higher val accuracy; at equal accuracy, a lower val NLL.

    Args:
        folder: The run's folder.
        steps_per_epoch: To tell epochs from steps.
        started: ``time.perf_counter()`` at the start of the run.
    """

    folder: Path
    steps_per_epoch: int
    started: float
    lines: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    best_predictions: Predictions | None = None
    _best_state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / METRICS_FILE).unlink(missing_ok=True)  # of an attempt that did not finish

    def enter(
        self, model: nn.Module, phase: PhaseSteps, step: int, val: Predictions, train_loss: float | None, now: float
    ) -> None:
        """Enter the validation after ``step`` optimizer steps of the run."""
        metrics = val.metrics()
        line = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "phase": phase.number,
            "train_loss": train_loss,
            **{f"val_{name}": value for name, value in metrics.items()},
            "seconds": now - self.started,
        }
        self.lines.append(line)
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        loss = "" if train_loss is None else f"  train loss {train_loss:.4f}"
        logger.info(
            "epoch %-6.4g val accuracy %.4f  nll %.4f%s  %.1f s",
            line["epoch"], metrics["accuracy"], metrics["nll"], loss, line["seconds"],
        )  # fmt: skip
        if phase.last and self._is_better(metrics):
            self.best, self.best_step, self.best_predictions = metrics, step, val
            self._best_state = _changeable(model, phase)

    def restore_best(self, model: nn.Module) -> None:
        """Put the best weights back into the model."""
        model.load_state_dict(self._best_state, strict=False)

    def still_rising(self) -> bool:
        """Whether val accuracy reached a new best in the last quarter of the run."""
        steps = [line["step"] for line in self.lines]
        late = [line["val_accuracy"] for line in self.lines if line["step"] > 0.75 * steps[-1]]
        early = [line["val_accuracy"] for line in self.lines if line["step"] <= 0.75 * steps[-1]]
        return bool(early and late) and max(late) > max(early)

    def _is_better(self, metrics: dict[str, float]) -> bool:
        if not self.best:
            return True
        return (metrics["accuracy"], -metrics["nll"]) > (self.best["accuracy"], -self.best["nll"])


def _changeable(model: nn.Module, phase: PhaseSteps) -> dict[str, Tensor]:
    """Copies of everything that the phase can change: its parameters and all buffers."""
    frozen = {name for name, _ in model.named_parameters()} - phase.phase.lr_multiplier.keys()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name not in frozen}
