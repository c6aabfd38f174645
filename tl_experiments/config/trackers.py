"""Choices of the group ``tracker``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NoTracker:
    """Records on disk only."""

    name: Literal["none"]


@dataclass(frozen=True, kw_only=True)
class WandbTracker:
    """Weights & Biases, fed from the records when a command ends.

    Args:
        project: W&B project.
        entity: W&B team or user; null is the account's default.
        mode: ``auto`` is online with an API key and offline without one.
    """

    name: Literal["wandb"]
    project: str
    entity: str | None
    mode: Literal["auto", "online", "offline"]


Tracker = NoTracker | WandbTracker
