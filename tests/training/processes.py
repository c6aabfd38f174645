"""Processes that train one job together, started once for many tests: importing torch and Lightning takes seconds."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from tests.training.watching import watched
from tl_experiments import interrupt
from tl_experiments.config import TrainConfig
from tl_experiments.data.decoded import Shared
from tl_experiments.errors import StorageError
from tl_experiments.features.batches import CachedData
from tl_experiments.objectives.supervised import SupervisedObjective
from tl_experiments.training.ranks import Ranks
from tl_experiments.training.run import run

ANSWER_S = 120


class Processes:
    """``n`` processes on this machine with torchrun's variables, which do what they are told at the same time."""

    def __init__(self, n: int) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pipes = [context.Pipe() for _ in range(n)]
        self.all = [
            context.Process(target=_serve, args=(rank, n, port, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        self.ours = [ours for ours, _ in pipes]
        for process, (_, theirs) in zip(self.all, pipes, strict=True):
            process.start()
            theirs.close()  # so that its end is seen here

    def tell(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Let each call ``work(*arguments)``."""
        for connection in self.ours:
            connection.send((work, arguments))

    def answer(self, rank: int, timeout_s: float = ANSWER_S) -> Any:
        """What one of them returned or raised."""
        assert self.ours[rank].poll(timeout_s), f"process {rank} did not answer in {timeout_s} s"
        return self.ours[rank].recv()

    def do(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """``work(*arguments)`` of each: what it returned, or raised."""
        self.tell(work, *arguments)
        return [self.answer(rank) for rank in range(len(self.all))]

    def end(self) -> None:
        """Kill those that live."""
        for process in self.all:
            process.kill()
            process.join()


@contextmanager
def processes(n: int) -> Iterator[Processes]:
    started = Processes(n)
    try:
        yield started
    finally:
        started.end()


def _serve(rank: int, n: int, port: int, connection: Connection) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    while True:
        try:
            work, arguments = connection.recv()
        except EOFError:
            return
        try:
            result = work(*arguments)
        except BaseException as error:
            result = error
        connection.send(result)


# What they are told; lines of the log come with the result


def weights_after(cfg: TrainConfig, folder: Any, steps: int) -> tuple[Any, dict[str, Any], list[str]]:
    """The record of a run, what trains after so many steps, as arrays, and the lines of the log."""
    with logged() as lines:
        seen = watched(cfg, folder, at=(steps,))
    return seen.record, {name: tensor.cpu().numpy() for name, tensor in seen.steps[steps].items()}, lines


def record_of(cfg: TrainConfig, folder: Any) -> tuple[Any, list[str]]:
    """The record of a run, and the lines of the log."""
    with logged() as lines:
        return run(cfg, folder), lines


@contextmanager
def logged() -> Iterator[list[str]]:
    """The lines of our log in the body."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tl_experiments")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def accident(cfg: TrainConfig, folder: Any, rank: int, at_loss: int, what: Callable[[], None]) -> Any:
    """A run in which something happens to one process in the forward pass of its loss number ``at_loss``, from 0.

    Returns:
        The run's record, and how many losses this process computed.
    """
    count, loss = 0, SupervisedObjective.loss

    def counting(self: Any, model: Any, batch: Any) -> Any:
        nonlocal count
        if count == at_loss and rank == int(os.environ["RANK"]):
            what()
        count += 1
        return loss(self, model, batch)

    with pytest.MonkeyPatch.context() as patch, interrupt.installed():
        patch.setattr(SupervisedObjective, "loss", counting)
        return run(cfg, folder), count


def moved(cfg: TrainConfig, folder: Any, rank: int, before: bool) -> Any:
    """A run in which one process moves a weight by itself, before training or in its last step."""
    check = Ranks.check_equal

    def moving(self: Ranks, state: Any, when: str) -> None:
        if self.rank == rank and before == ("before" in when):
            with torch.no_grad():
                state["head.weight"][0, 0] += 1e-6
        check(self, state, when)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "check_equal", moving)
        return run(cfg, folder)


def slow(cfg: TrainConfig, folder: Any, rank: int, seconds: float) -> Any:
    """A run in which one process makes all that a phase is prepared with, while the other finds it made."""

    def slowed(work: Callable[..., Any]) -> Callable[..., Any]:
        def after_a_while(*arguments: Any) -> Any:
            if rank == int(os.environ["RANK"]):
                time.sleep(seconds)
            return work(*arguments)

        return after_a_while

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((CachedData, "ensure"), (Shared, "__init__")):
            patch.setattr(owner, name, slowed(getattr(owner, name)))
        return run(cfg, folder)


def with_a_full_disk(cfg: TrainConfig, folder: Any, rank: int) -> Any:
    """A run in which one process finds no room for any file."""

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        if rank == int(os.environ["RANK"]):
            patch.setattr(os, "fsync", full)
        return run(cfg, folder)


def sigterm() -> None:
    """A signal to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


def sigkill() -> None:
    """This process ends without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def no_room() -> None:
    """An error that this process has alone."""
    raise StorageError("disk", "no space is left", "make room")


def sleep() -> None:
    """Longer than anybody waits."""
    time.sleep(8)
