"""What a run needs to go on after it was killed: written between two steps, read once, removed when the run is done."""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_experiments.errors import TrainingError
from tl_experiments.records import write_atomically

logger = logging.getLogger(__name__)

_KEPT = 2  # a damaged one falls back on the one before


@dataclass(frozen=True)
class ResumePoint:
    """The state of a run between two optimizer steps.

    The data order, augmentation and dropout are functions of the seed and the step, so no generator's state is here.

    Args:
        run: What the run is, as plain values: a point of another one is refused.
        step: Optimizer steps done, over all phases.
        model: Tensors of the model that the run has changed so far.
        optimizer: State of the optimizer of the phase in progress.
        precision: State of the loss scaling; empty without one.
        ema: The average of the phase in progress; empty without one.
        history: What validation said, and the best weights.
        losses: Of the steps since the last validation, ``(steps,)``; empty right after one.
        accumulation: Parts in which batches are computed by now.
        elapsed_s: Seconds of training behind it.
    """

    run: dict[str, Any]
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    precision: dict[str, Any]
    ema: dict[str, Tensor]
    history: dict[str, Any]
    losses: Tensor
    accumulation: int
    elapsed_s: float

    def write(self, folder: Path) -> Path:
        """Write ``resume-<step>.pt`` and a sha256 beside it; of older ones the last is kept."""
        stream = io.BytesIO()
        torch.save({field.name: getattr(self, field.name) for field in fields(self)}, stream)
        path = folder / f"resume-{self.step:08d}.pt"
        write_atomically(_sha256_file(path), hashlib.sha256(stream.getvalue()).hexdigest() + "\n")
        write_atomically(path, stream.getvalue())
        for old in _files(folder)[:-_KEPT]:
            _remove(old)
        return path


def read_resume_point(folder: Path, run: dict[str, Any]) -> ResumePoint | None:
    """The newest undamaged resume point in ``folder``; None where there is none.

    Raises:
        TrainingError: It belongs to another run: the data or the plan changed since.
    """
    for path in reversed(_files(folder)):
        content = path.read_bytes()
        sidecar = _sha256_file(path)
        if not sidecar.is_file() or hashlib.sha256(content).hexdigest() != sidecar.read_text().strip():
            logger.warning("%s is damaged and left out; going on from the one before", path)
            continue
        point = ResumePoint(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
        if changed := sorted(key for key in run.keys() | point.run.keys() if run.get(key) != point.run.get(key)):
            then, now = (str(of.get(changed[0]))[:80] for of in (point.run, run))
            raise TrainingError(
                str(path),
                f"the run it belongs to had another {changed[0]}: {then} then, {now} now",
                "remove the run's folder to start over",
            )
        return point
    return None


def remove_resume_points(folder: Path) -> None:
    """A run that is done needs none."""
    for path in _files(folder):
        _remove(path)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("resume-*.pt"))


def _sha256_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _sha256_file(path).unlink(missing_ok=True)
