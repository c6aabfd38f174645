"""Config-driven transfer learning experiments: which backbone, what to freeze, and does transfer help at all?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_experiments.analysis import compare
    from tl_experiments.config import compose
    from tl_experiments.inference.loading import load_model
    from tl_experiments.records import RunRecord
    from tl_experiments.training.checkpoint import load_run
    from tl_experiments.training.run import run

__version__ = "0.1.0"
__all__ = ["RunRecord", "__version__", "compare", "compose", "load_model", "load_run", "run"]

_HOME = {
    "RunRecord": "tl_experiments.records",
    "compare": "tl_experiments.analysis",
    "compose": "tl_experiments.config",
    "load_model": "tl_experiments.inference.loading",
    "load_run": "tl_experiments.training.checkpoint",
    "run": "tl_experiments.training.run",
}


def __getattr__(name: str) -> Any:
    """Load on first use (PEP 562): ``import tl_experiments`` must not import torch."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
