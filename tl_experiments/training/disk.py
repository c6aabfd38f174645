"""What a run will write, told before it trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from tl_experiments.config.schema import TrainConfig
from tl_experiments.errors import StorageError
from tl_experiments.records import free_bytes
from tl_experiments.training.build import Parts

_POINTS = 3  # two resume points are kept while the next one is written
_MOMENTS = 2  # numbers that an optimizer keeps for each parameter: two for AdamW, fewer for most others
_BYTES_A_NAME = 100  # of an item in the predictions, before compression


def bytes_to_write(cfg: TrainConfig, parts: Parts) -> int:
    """An upper estimate of what the run has on disk at once: resume points, predictions and checkpoint."""
    state = parts.model.state_dict()
    changing = [set(steps.changeable(parts.model)) for steps in parts.phases]
    trained = max(_size(state, steps.phase.lr_multiplier) for steps in parts.phases)
    changed, last = _size(state, set().union(*changing)), _size(state, changing[-1])
    average = max(_size(state, names) for names in changing) if cfg.trainer.ema_decay is not None else 0
    sizes, classes = parts.data.spec.sizes, len(parts.data.spec.classes)
    point = changed + _MOMENTS * trained + average + last + 4 * sizes["val"] * classes
    predictions = (sum(sizes.values()) - sizes["train"]) * (8 * classes + _BYTES_A_NAME)
    whole = cfg.trainer.checkpoint == "all" or parts.weights.sha256 is None
    checkpoint = 0 if cfg.trainer.checkpoint == "none" else _size(state, state) if whole else changed
    return _POINTS * point + predictions + checkpoint


def check_space(cfg: TrainConfig, parts: Parts, folder: Path, runs: int = 1) -> None:
    """Refuse a run whose files will not fit; what an earlier attempt left in ``folder`` is replaced and counts as free.

    Args:
        cfg: Of the run.
        parts: What it works with.
        folder: Of the run.
        runs: How many of its size are written beside each other.

    Raises:
        StorageError: Before anything is written.
    """
    there = sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) if folder.is_dir() else 0
    need, free = runs * bytes_to_write(cfg, parts), free_bytes(folder) + there
    if need > free:
        what = "the run needs" if runs == 1 else f"{runs} runs need"
        raise StorageError(
            str(folder), f"{what} up to {need:,} bytes there, {free:,} are free", "make room, or output_dir=..."
        )


def _size(state: Mapping[str, Tensor], names: Iterable[str]) -> int:
    return sum(state[name].nbytes for name in names)
