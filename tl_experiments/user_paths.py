"""Paths as people type them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with ``~`` and environment variables replaced; Hydra's lexer lets only the latter through unquoted."""
    return Path(os.path.expandvars(path)).expanduser()
