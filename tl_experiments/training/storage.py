"""Where a run keeps what others can use. Without torch."""

from __future__ import annotations

import os
from pathlib import Path

from tl_experiments.cache.store import Store
from tl_experiments.config.schema import TrainConfig


def store_of(cfg: TrainConfig) -> Store:
    """Where decoded images, activations and digests of files are kept."""
    folder = cfg.feature_cache.dir or Path(cfg.output_dir, ".cache")
    return Store(Path(os.path.expandvars(folder)).expanduser(), cfg.feature_cache.max_bytes)
