"""Choices of the group ``head``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear layer on the pooled features."""

    name: Literal["linear"]


Head = Linear
