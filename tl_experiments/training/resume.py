"""What a run needs to go on after it was killed: written between two steps, read once, removed when the run is done."""

from __future__ import annotations

import hashlib
import io
import logging
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_experiments.errors import TrainingError
from tl_experiments.records import remove_resume_points, write_atomically

logger = logging.getLogger(__name__)

_WRITING_SHARE = 0.05
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
        """Write ``resume-<step>.pt`` and a sha256 beside it; of older ones the last is kept.

        The hash comes first, and older points go when both are on the disk: a kill in between leaves what was there.
        A point of the same step stays as it is, since its hash could not be replaced in one go with it.
        """
        path = folder / f"resume-{self.step:08d}.pt"
        if path.exists():
            return path
        stream = io.BytesIO()
        torch.save({field.name: getattr(self, field.name) for field in fields(self)}, stream)
        write_atomically(_sha256_file(path), hashlib.sha256(stream.getbuffer()).hexdigest() + "\n")
        write_atomically(path, stream.getvalue())
        for old in _files(folder)[:-_KEPT]:
            _remove(old)
        return path


def read_resume_point(folder: Path, run: dict[str, Any]) -> ResumePoint | None:
    """The newest undamaged resume point in ``folder``; None where there is none.

    Damaged ones, what a kill left half written, and those of a run that was computed in another way are removed.

    Raises:
        TrainingError: It belongs to another run: the data or the plan changed since.
    """
    points = _files(folder)
    for orphan in {*folder.glob("resume-*.sha256")} - {_sha256_file(path) for path in points}:
        orphan.unlink(missing_ok=True)
    while points:
        path = points.pop()
        content = path.read_bytes()
        if damage := _damage(path, content):
            instead = f"going on from {points[-1].name}" if points else "starting over"
            logger.warning("%s is damaged (%s) and removed; %s", path, damage, instead)
            _remove(path)
            continue
        point = ResumePoint(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
        if point.run.get("way") != run.get("way"):
            logger.warning(
                "%s was written on another way (%s then, %s now) and is removed; starting over",
                path, point.run.get("way"), run.get("way"),
            )  # fmt: skip
            remove_resume_points(folder)
            return None
        if changed := sorted(key for key in run.keys() | point.run.keys() if run.get(key) != point.run.get(key)):
            then, now = (str(of.get(changed[0]))[:80] for of in (point.run, run))
            raise TrainingError(
                str(path),
                f"the run it belongs to had another {changed[0]}: {then} then, {now} now",
                "remove the run's folder to start over",
            )
        return point
    return None


def is_due(since_s: float, write_s: float, interval_s: float | None) -> bool:
    """Whether to write a point at the end of an epoch.

    Args:
        since_s: Seconds since the last one was written, or the run began.
        write_s: That writing the last one took; 0 before the first.
        interval_s: Least seconds between two; None writes one unless that takes more than a twentieth of the time.
    """
    return since_s >= (write_s / _WRITING_SHARE if interval_s is None else interval_s)


class WritingTimer:
    """When to write the next point; the body of ``with timer:`` writes one.

    Args:
        interval_s: As in ``is_due``.
    """

    def __init__(self, interval_s: float | None) -> None:
        self._interval_s = interval_s
        self._last = time.perf_counter()
        self._write_s = 0.0

    def is_due(self) -> bool:
        """Whether to write one at the end of this epoch."""
        return is_due(time.perf_counter() - self._last, self._write_s, self._interval_s)

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._last = time.perf_counter()
        self._write_s = self._last - self._begun


def _damage(path: Path, content: bytes) -> str | None:
    """What is wrong with a point's file, in a few words."""
    if not content:
        return "it is empty"
    try:
        expected = _sha256_file(path).read_text().strip()
    except (OSError, ValueError):
        return "no readable sha256 beside it"
    return None if hashlib.sha256(content).hexdigest() == expected else "its sha256 is another"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("resume-*.pt"))


def _sha256_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _sha256_file(path).unlink(missing_ok=True)
