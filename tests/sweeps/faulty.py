"""Configs that break the process that uses them; a module of its own, so that a job's process can import it."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing import parent_process
from pathlib import Path

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
        mark = Path(self.output_dir, "was-killed")
        if not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().base_lr()


class EndsTheCommand(TrainConfig):
    """Sends the command SIGTERM, as a cluster does, and then trains for long."""

    def base_lr(self) -> float:
        _signal_the_command(signal.SIGTERM)
        time.sleep(100)
        raise AssertionError


class WillNotStop(TrainConfig):
    """Sends the command two Ctrl-C, and takes no notice of being asked to end."""

    def base_lr(self) -> float:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(2):
            _signal_the_command(signal.SIGINT)
            time.sleep(1)
        time.sleep(100)
        raise AssertionError


class RunsOutOfMemoryWhileItEnds(TrainConfig):
    """Sends the command SIGTERM, and memory runs out in the time that is given for a resume point."""

    def base_lr(self) -> float:
        import torch

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _signal_the_command(signal.SIGTERM)
        time.sleep(2)
        torch.empty(2**50)
        raise AssertionError


def _signal_the_command(signum: int) -> None:
    parent = parent_process()
    assert parent is not None
    assert parent.pid is not None
    os.kill(parent.pid, signum)


class _OnlyRank1(TrainConfig):
    """Well in rank 0, which then waits for rank 1 in vain."""

    def base_lr(self) -> float:
        if os.environ["RANK"] == "1":
            self.fail()
        return super().base_lr()

    def fail(self) -> None:
        raise NotImplementedError


class Rank1Raises(_OnlyRank1):
    def fail(self) -> None:
        raise RuntimeError("a bug\nin two lines")


class Rank1IsKilled(_OnlyRank1):
    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Rank1Exits(_OnlyRank1):
    def fail(self) -> None:
        sys.exit(3)
