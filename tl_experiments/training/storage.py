"""Where a run keeps what others can use. Without torch."""

from __future__ import annotations

from pathlib import Path

from tl_experiments.cache.store import Store
from tl_experiments.config.schema import TrainConfig
from tl_experiments.user_paths import expanded


def store_of(cfg: TrainConfig) -> Store:
    """Where decoded images, activations and digests of files are kept."""
    folder = cfg.feature_cache.dir or Path(cfg.output_dir, ".cache")
    return Store(expanded(folder), cfg.feature_cache.max_bytes)
