"""Processes of one job that torchrun or srun has started: the first leads, the others take part in its training.

All of them run the same command, or the same function. Only the first looks at what is done and writes; what the others
are to do they read in the store at which the processes meet.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tl_experiments.config.trainers import Trainer
from tl_experiments.errors import INTERRUPTED, SOME_FAILED, ConfigError
from tl_experiments.interrupt import Interrupted
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.ledger import ENDED_BADLY, State
from tl_experiments.sweeps.tasks import Task
from tl_experiments.sweeps.worker import (
    Send,
    only_warnings,
    rank_log,
    remove_if_empty,
    run_job,
    run_task,
    write_output_to,
)

logger = logging.getLogger(__name__)

_LOOK_S = 0.2  # between two looks into the store
_SETTLE_S = 3.0  # that the first may take to notice by itself that another has failed
_SAYING_S = 1.0  # that another may take to say why it failed, after the first has noticed
_FAREWELL_S = 5.0  # that the first, which may serve the store, waits for the others to read its last word
_PORTS = range(15000, 30000)  # below those that systems give to clients
_TRAIN, _CODE, _READ, _FAULT = "train", "code", "read", "fault"  # in the store


@dataclass(frozen=True)
class Launched:
    """This process among those that were started together.

    Args:
        rank: Of this process.
        world_size: Number of processes.
        by: Who started them.
    """

    rank: int
    world_size: int
    by: str

    @property
    def first(self) -> bool:
        """Whether it is this process that leads."""
        return self.rank == 0

    def check(self, trainer: Trainer) -> None:
        """That the trainer wants as many processes.

        Raises:
            ConfigError: It wants more or fewer.
        """
        if trainer.name == "default":
            raise ConfigError(
                "trainer",
                f"default, which is one process, but {self.by} started {self.world_size}",
                f"trainer=ddp with trainer.devices= the processes of a machine, or start it without {self.by}",
            )
        if trainer.world_size != self.world_size:
            raise ConfigError(
                "trainer.devices",
                f"{trainer.devices} times trainer.num_nodes={trainer.num_nodes} is {trainer.world_size} processes, but "
                f"{self.by} started {self.world_size}",
                "start a process a device, or give another trainer.devices and trainer.num_nodes",
            )

    def lead(self, work: Callable[[], int]) -> int:
        """The first process's command; the others end with its exit code."""
        code = SOME_FAILED
        try:
            code = work()
            return code
        except BaseException as error:
            code = getattr(error, "exit_code", INTERRUPTED if isinstance(error, KeyboardInterrupt) else SOME_FAILED)
            raise
        finally:
            self._store.set(_CODE, str(code))
            end = time.monotonic() + _FAREWELL_S
            while self._store.add(_READ, 0) < self.world_size - 1 and time.monotonic() < end:
                time.sleep(_LOOK_S)

    @contextmanager
    def training(self, died: Callable[[str], None]) -> Iterator[None]:
        """In the body the first process trains, and so do the others.

        Args:
            died: Called with the cause where another has failed and the body still waits for it; then all is over.
        """
        over = threading.Event()

        def watch() -> None:
            while not over.wait(1.0):
                if (fault := self._fault()) and not over.wait(_SETTLE_S):
                    died(fault)
                    os._exit(SOME_FAILED)

        self._store.set(_TRAIN, "")
        threading.Thread(target=watch, daemon=True, name="watch over the other ranks").start()
        try:
            yield
        finally:
            over.set()

    def run_job(self, job: Job, folder: Path, threads: int | None) -> tuple[State, str | None, BaseException | None]:
        """``worker.run_job`` in the first process; where another one failed first, its cause is the job's."""
        with self.training(lambda cause: logger.error("%s: %s", job.id, cause)):
            state, cause, error = run_job(job, folder, threads)
        if state in ENDED_BADLY and (fault := self._fault(_SAYING_S)):
            return state, fault, None
        return state, cause, error

    def blaming(self, send: Send) -> Send:
        """``send`` of ``worker.run_task`` in the first process, likewise."""

        def blamed(message: tuple[Any, ...]) -> None:
            match message:
                case "ended", position, state, cause, seconds if state in ENDED_BADLY:
                    message = ("ended", position, state, self._fault(_SAYING_S) or cause, seconds)
                case "left", state, cause, final if state in ENDED_BADLY:
                    message = ("left", state, self._fault(_SAYING_S) or cause, final)
            send(message)

        return blamed

    def take_part(self, task: Task, folder: Path, threads: int | None) -> int:
        """Another process's part: it trains when the first does, quietly, and ends with the same exit code."""
        causes: list[str] = []

        def hear(message: tuple[Any, ...]) -> None:
            match message:
                case "ended", _, state, cause, _ if state in ENDED_BADLY:
                    causes.append(cause)
                case "left", state, cause, final if state in ENDED_BADLY:
                    causes.append(cause if final else f"rank {self.rank}: {cause}")

        try:
            if not self._may_train():
                return self._code()
            log = folder / rank_log(task.log, self.rank)
            write_output_to(log, anew=False)
            only_warnings()
            run_task(task, folder, threads, hear)
            remove_if_empty(log)
            if causes:
                self._store.set(_FAULT, causes[0])
            return self._wait_for_code(_SETTLE_S + _FAREWELL_S if causes else None)
        except Interrupted as error:  # while it waited
            return error.exit_code
        except RuntimeError:  # the store has ended with the first process
            return SOME_FAILED

    def _may_train(self) -> bool:
        while not self._store.check([_TRAIN]):
            if self._store.check([_CODE]):
                return False
            time.sleep(_LOOK_S)
        return True

    def _wait_for_code(self, patience_s: float | None) -> int:
        end = time.monotonic() + (patience_s or float("inf"))
        while not self._store.check([_CODE]):
            if time.monotonic() > end:
                return SOME_FAILED
            time.sleep(_LOOK_S)
        return self._code()

    def _code(self) -> int:
        code = int(self._store.get(_CODE))
        self._store.add(_READ, 1)
        return code

    def _fault(self, patience_s: float = 0.0) -> str | None:
        """What another process says of its own failure."""
        end = time.monotonic() + patience_s
        while not self._store.check([_FAULT]):
            if time.monotonic() >= end:
                return None
            time.sleep(_LOOK_S)
        return str(self._store.get(_FAULT).decode())

    @cached_property
    def _store(self) -> Any:
        from torch.distributed.distributed_c10d import PrefixStore

        from tl_experiments.training.ranks import meeting_place

        return PrefixStore("command", meeting_place(self.rank, self.world_size))


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """This process among those of torchrun or srun; None where it is the only one.

    Under srun this sets torchrun's variables as well.
    """
    if (given := srun_variables(environment)) is not None:
        os.environ.update(given)
        environment = given
    rank, world_size = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if not (rank.isdigit() and world_size.isdigit()) or int(world_size) == 1:
        return None
    return Launched(int(rank), int(world_size), "srun" if given else "torchrun")


def srun_variables(environment: Mapping[str, str]) -> dict[str, str] | None:
    """torchrun's variables from those of srun; None where it has started one process, or none, or torchrun.

    An address or port that is given stays. The port is made of the number of the job and of its step, so that several
    on one machine rarely meet.
    """
    n = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if n == "1" or "RANK" in environment:
        return None
    per_node = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", n))
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": n,
        "LOCAL_WORLD_SIZE": per_node.group() if per_node else n,
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_node(environment),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_PORTS[(job * 101 + step) % len(_PORTS)]),
    }


def _first_node(environment: Mapping[str, str]) -> str:
    if environment.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    return SLURMEnvironment.resolve_root_node_address(environment["SLURM_STEP_NODELIST"])
