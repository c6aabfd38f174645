"""What validation said on the way, and the weights that it chose."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tl_experiments.errors import PrunedError
from tl_experiments.records import METRICS_FILE, append_line, write_atomically
from tl_experiments.training.groups import Judge, unjudged
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
        quiet: Whether validations go into the file alone, and not into the log.
        writes: Whether they go into the file; not where the run has ended and only takes part once more.
        judge: Asked by ``check_prospects``.
    """

    folder: Path
    steps_per_epoch: int
    started: float
    lines: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    best_predictions: Predictions | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    quiet: bool = False
    writes: bool = True
    judge: Judge = unjudged

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.writes:
            (self.folder / METRICS_FILE).unlink(missing_ok=True)  # of an attempt that did not finish

    def enter(
        self,
        phase: PhaseSteps,
        step: int,
        val: Predictions,
        weights: Callable[[], dict[str, Tensor]],
        train_loss: float | None,
        now: float,
        lr: float | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Enter the validation after ``step`` optimizer steps of the run.

        Args:
            phase: In progress.
            step: Optimizer steps done, over all phases.
            val: Outputs on val.
            weights: Copies of what the phase can change; called where this validation is the best yet.
            train_loss: Mean since the last validation.
            now: ``time.perf_counter()``.
            lr: Highest rate of the last step.
            metrics: Of ``val``, where they are known already.
        """
        metrics = val.metrics() if metrics is None else metrics
        line = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "phase": phase.number,
            "learning_rate": lr,
            "train_loss": train_loss,
            **{f"val_{name}": value for name, value in metrics.items()},
            "seconds": now - self.started,
        }
        self.lines.append(line)
        if self.writes:
            append_line(self.folder / METRICS_FILE, json.dumps(line))
        if phase.last and self._is_better(metrics):
            self.best, self.best_step, self.best_predictions = metrics, step, val
            self.best_state = weights()
        if self.quiet:
            return
        loss = "" if train_loss is None else f"  train loss {train_loss:.4f}"
        logger.info(
            "epoch %-6.4g val accuracy %.4f  nll %.4f%s  %.1f s",
            line["epoch"], metrics["accuracy"], metrics["nll"], loss, line["seconds"],
        )  # fmt: skip

    def check_prospects(self, total: int) -> None:
        """End the run if the last of its validations says that it is not worth going on; not after its last step.

        Args:
            total: Optimizer steps of the run.

        Raises:
            PrunedError: ``judge`` says so.
        """
        step, accuracy = self.lines[-1]["step"], self.lines[-1]["val_accuracy"]
        if step < total and (why := self.judge(len(self.lines), accuracy)) is not None:
            what = f"val accuracy {accuracy:.4f} is {why}"
            raise PrunedError(f"after step {step} of {total}", what, "tune.pruner=none trains all to the end")

    def restore_best(self, model: nn.Module) -> None:
        """Put the best weights back into the model."""
        model.load_state_dict(self.best_state, strict=False)

    def still_rising(self) -> bool:
        """Whether val accuracy reached a new best in the last quarter of the run."""
        steps = [line["step"] for line in self.lines]
        late = [line["val_accuracy"] for line in self.lines if line["step"] > 0.75 * steps[-1]]
        early = [line["val_accuracy"] for line in self.lines if line["step"] <= 0.75 * steps[-1]]
        return bool(early and late) and max(late) > max(early)

    def validations_since_best(self) -> int:
        """Validations after the best one; 0 before the last phase has one."""
        return sum(line["step"] > self.best_step for line in self.lines) if self.best else 0

    def state(self) -> dict[str, Any]:
        """Everything in it, as tensors and plain values."""
        best = self.best_predictions
        return {
            "lines": list(self.lines),
            "best": dict(self.best),
            "best_step": self.best_step,
            "best_predictions": None if best is None else (best.index, best.label, best.logits),
            "best_state": self.best_state,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``; ``metrics.jsonl`` is written anew as it was then."""
        self.lines, self.best, self.best_step = state["lines"], state["best"], state["best_step"]
        self.best_predictions = Predictions(*state["best_predictions"]) if state["best_predictions"] else None
        self.best_state = state["best_state"]
        if self.writes:
            write_atomically(self.folder / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in self.lines))

    def _is_better(self, metrics: dict[str, float]) -> bool:
        if not self.best:
            return True
        return (metrics["accuracy"], -metrics["nll"]) > (self.best["accuracy"], -self.best["nll"])
