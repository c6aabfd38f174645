"""Configs that break the process that uses them; a module of its own, so that a job's process can import it."""

from __future__ import annotations

import os
import signal
import sys

from tl_experiments.config import TrainConfig


class Raises(TrainConfig):
    def base_lr(self) -> float:
        raise RuntimeError("a bug\nin two lines")


class Exits(TrainConfig):
    def base_lr(self) -> float:
        sys.exit(3)


class ExitsAsIfAllWereWell(TrainConfig):
    def base_lr(self) -> float:
        sys.exit(0)


class Killed(TrainConfig):
    def base_lr(self) -> float:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Segfaults(TrainConfig):
    def base_lr(self) -> float:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError


class RunsOutOfMemory(TrainConfig):
    def base_lr(self) -> float:
        import torch

        torch.empty(2**50)
        raise AssertionError


class KilledInCompany(TrainConfig):
    """Kills its process the first time; ``output_dir`` remembers it."""

    def base_lr(self) -> float:
        from pathlib import Path

        mark = Path(self.output_dir, "was-killed")
        if not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().base_lr()
