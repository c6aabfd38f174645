"""Losses of the steps since the last validation, and whether a signal came, over all processes."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from tl_experiments import interrupt
from tl_experiments.training.ranks import Ranks

_MOST_STEPS = 64


class Losses:
    """Mean training losses of steps; they leave the device, and this process, only when they are asked for.

    Args:
        ranks: Of whose losses the mean is taken.
        before: Of steps before a resume, ``(steps,)``.
    """

    def __init__(self, ranks: Ranks, before: Tensor | None) -> None:
        self._ranks = ranks
        self._known = torch.empty(0) if before is None else before
        self._own: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Enter this process's loss of the next step, a scalar."""
        self._own.append(loss)

    def of_all(self) -> Tensor:
        """One a step, ``(steps,)``, on the CPU; every process asks at the same time."""
        if self._own:
            self._known = torch.cat([self._known, self._ranks.mean(torch.stack(self._own))])
            self._own.clear()
        return self._known

    def clear(self) -> None:
        """Begin anew, after a validation."""
        self._own.clear()
        self._known = torch.empty(0)


class Signals:
    """Whether a signal has asked any of the processes to end: all learn of it after the same step.

    Alone a process asks after every step. Several wait for each other when they ask, so they do it about once a second,
    by the first one's clock.

    Args:
        ranks: The processes.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._asked_at, self._when = 0, time.perf_counter()
        self._next = 0

    def due(self, step: int) -> bool:
        """Whether it is time to ask after ``step``."""
        return step >= self._next

    def received(self, step: int) -> int | None:
        """The signal's number; every process asks after the same steps."""
        steps, now = step - self._asked_at, time.perf_counter()
        pause = 1
        if self._ranks.world_size > 1 and self._ranks.first:
            pause = min(_MOST_STEPS, max(1, int(steps / max(now - self._when, 1e-6))))
        signum, pause = self._ranks.largest(interrupt.requested() or 0, pause)
        self._asked_at, self._when, self._next = step, now, step + pause
        return signum or None
