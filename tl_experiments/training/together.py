"""The jobs of one task, in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tl_experiments.config.schema import TrainConfig
from tl_experiments.training.groups import SharedWork
from tl_experiments.training.run import run

Ended = Callable[[int, str, str | None, float], None]


def run_together(jobs: Sequence[tuple[TrainConfig, Path]], shared: SharedWork, ended: Ended) -> None:
    """Train the jobs of one task; ``ended(position, state, cause, seconds)`` is called as each ends."""
    for position, (config, folder) in enumerate(jobs):
        record = run(config, folder)
        ended(position, "ok", None, record.wall_clock_s)
