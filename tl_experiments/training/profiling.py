"""Where the time of a training step goes, by torch's profiler."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile, schedule

from tl_experiments.records import write_atomically

logger = logging.getLogger(__name__)

_WARMUP, _STEPS = 2, 6
_ROWS = 25


class StepProfiler(pl.Callback):
    """Profiles a few training steps after the first ones, which allocate and choose algorithms.

    Args:
        folder: Gets ``operators.txt``, operators by the time they take themselves, and ``trace.json``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=_WARMUP, active=_STEPS, repeat=1),
            on_trace_ready=self._write,
            profile_memory=True,
        )

    def on_train_start(self, *_: Any) -> None:
        self._profile.start()

    def on_train_batch_end(self, *_: Any) -> None:
        self._profile.step()

    def on_train_end(self, *_: Any) -> None:
        self._profile.stop()

    def _write(self, finished: profile) -> None:
        """The profiler calls this when it has seen its steps, or at the end if there were fewer."""
        sort_by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = finished.key_averages().table(sort_by=sort_by, row_limit=_ROWS)
        path = write_atomically(self._folder / "operators.txt", table)
        finished.export_chrome_trace(str(self._folder / "trace.json"))
        logger.info("profile   %s and trace.json beside it", path)
