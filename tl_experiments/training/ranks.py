"""The processes that train one job together: who this one is, and what they tell each other.

Whoever starts them sets torchrun's variables. Gradients go over NCCL between GPUs and over gloo between CPUs;
everything else goes over a gloo group of its own, from CPU to CPU, so that no process waits for a GPU to hear from
another.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tl_experiments.config.trainers import OneDevice, Trainer
from tl_experiments.errors import ConfigError, TrainingError, UserError, first_line

T = TypeVar("T")

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_DAY = datetime.timedelta(days=1)
_opened = itertools.count()  # groups of this process; every process of a job counts alike


@dataclass(frozen=True)
class Ranks:
    """One process among those that train a job together; by default the only one.

    Methods are collective: all processes call the same ones in the same order. Alone they do nothing.

    Args:
        rank: Of this process, from 0; the first alone writes files and log.
        local_rank: Among those of its machine.
        world_size: Number of processes.
        control: The group over which they talk; None where there is one process.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    control: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether it is this process that writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of ranks; any object that can be pickled."""
        if self.world_size == 1:
            return [value]
        found: list[T | None] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.control)
        return found  # type: ignore[return-value]

    def from_first(self, value: T) -> T:
        """The first process's value."""
        if self.world_size == 1:
            return value
        found = [value]
        dist.broadcast_object_list(found, src=0, group=self.control)
        return found[0]

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes below each other, ``(n, ...)`` from ``(n of this process, ...)``, on the CPU."""
        if self.world_size == 1:
            return rows.cpu()
        sizes = self.gather(len(rows))
        padded = torch.zeros(max(sizes), *rows.shape[1:], dtype=rows.dtype)
        padded[: len(rows)] = rows.cpu()
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded, group=self.control)
        return torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)])

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, of tensors of one shape; on the CPU."""
        values = values.cpu()
        if self.world_size > 1:
            dist.all_reduce(values, group=self.control)
            values /= self.world_size
        return values

    def largest(self, *values: int) -> tuple[int, ...]:
        """Of each number the largest over all processes."""
        if self.world_size == 1:
            return values
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return tuple(found.tolist())

    def take_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with the first process's, wherever they stand."""
        if self.world_size > 1:
            own = [tensor.detach() for tensor in tensors]
            for tensor, value in zip(own, self.from_first([tensor.cpu() for tensor in own]), strict=True):
                tensor.copy_(value)

    def wait(self) -> None:
        """Until all have come here: for a day, since one may find in its caches what another makes.

        Other exchanges take no longer than ``timeout_s``. The death of a process ends the wait of all.
        """
        if self.world_size > 1:
            dist.monitored_barrier(self.control, timeout=_DAY)

    def done_by_first(self, work: Callable[[], T]) -> T:
        """``work`` in the first process alone: its result in all of them, or its error where that is a user's.

        The others wait a day for it; the result goes over the network.
        """
        if self.world_size == 1:
            return work()
        outcome: tuple[T | None, UserError | None] = None, None
        if self.first:
            try:
                outcome = work(), None
            except UserError as raised:
                outcome = None, raised
        self.wait()
        result, error = self.from_first(outcome)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def in_turn(self, work: Callable[[], T]) -> T:
        """``work`` in the first process, then in the others, which find what it has left in caches."""
        results: list[T] = []
        self.done_by_first(lambda: results.append(work()))
        result = results[0] if self.first else work()
        self.wait()
        return result

    def check_equal(self, state: Mapping[str, Tensor], when: str) -> None:
        """Raise a TrainingError unless all processes hold the same bits."""
        if self.world_size == 1:
            return
        digests = {name: _digest(tensor) for name, tensor in state.items()}
        found = self.gather(digests)
        wrong = sorted(name for name in digests if len({one.get(name) for one in found}) > 1)
        if wrong:
            what = f"{len(wrong)} tensors differ between the {self.world_size} processes {when}, e.g. {wrong[:3]}"
            raise TrainingError("weights", what, "report this as a bug")


ALONE = Ranks()


def ranks_of(cfg: Trainer) -> Ranks:
    """Who this process is, from torchrun's variables; they mean nothing to a trainer of one device.

    Raises:
        ConfigError: There are more or fewer processes than the trainer wants.
    """
    if isinstance(cfg, OneDevice):
        return ALONE
    given = {key: os.environ.get(key, "") for key in _VARIABLES}
    rank, local_rank, world_size = (int(value) if value.isdigit() else None for value in given.values())
    if rank is None or local_rank is None or world_size is None:
        rank, local_rank, world_size = 0, 0, 1
    if world_size != cfg.world_size:
        raise ConfigError(
            "trainer.devices",
            f"{cfg.devices} times trainer.num_nodes={cfg.num_nodes} is {cfg.world_size} processes, but "
            f"{world_size} {'was' if world_size == 1 else 'were'} started",
            f"torchrun --nproc-per-node {cfg.devices} --nnodes {cfg.num_nodes}, or another trainer.devices",
        )
    return Ranks(rank, local_rank, world_size)


@contextmanager
def opened(cfg: Trainer, accelerator: str) -> Iterator[Ranks]:
    """The processes, connected in the body; "cuda" means this process's own GPU from here on.

    Args:
        cfg: What the config wants.
        accelerator: ``gpu`` or ``cpu``.

    Raises:
        ConfigError: Processes or GPUs do not fit the config.
        TrainingError: Another process ended, or did not answer in time.
    """
    ranks = ranks_of(cfg)
    if isinstance(cfg, OneDevice):
        yield ranks
        return
    device = _own_gpu(ranks.local_rank) if accelerator == "gpu" else None
    timeout = datetime.timedelta(seconds=cfg.timeout_s)
    store = PrefixStore(f"job {next(_opened)}", meeting_place(ranks.rank, ranks.world_size))
    with _quiet(ranks), _losing_others(ranks):
        if device is not None:
            refuse_one_for_two(store, ranks, str(torch.cuda.get_device_properties(device).uuid))
        try:
            dist.init_process_group(
                "gloo" if device is None else "nccl",
                store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=timeout, device_id=device,
            )  # fmt: skip
            control = dist.new_group(backend="gloo", timeout=timeout)
            assert isinstance(control, dist.ProcessGroup)  # of which this process is a member
            yield Ranks(ranks.rank, ranks.local_rank, ranks.world_size, control)
            dist.barrier(control)
        except BaseException:
            if device is not None:  # to be destroyed NCCL would wait for exchanges that the others have left
                dist.distributed_c10d._abort_process_group()
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


@cache
def meeting_place(rank: int, world_size: int) -> Store:
    """Where processes find each other; one for all jobs of this process, since the first process serves it."""
    if world_size == 1:
        return dist.HashStore()  # type: ignore[attr-defined]
    store: Store = next(rendezvous("env://", rank, world_size))[0]
    return store


def _own_gpu(local_rank: int) -> torch.device:
    """The GPU of a process: the only one that it sees, or that of its number."""
    count = torch.cuda.device_count()
    number = 0 if count == 1 else local_rank
    if number >= count:
        what = f"process {local_rank} of this machine, which has {count} GPUs"
        raise ConfigError("trainer.devices", what, "no more devices than GPUs, or trainer.accelerator=cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def refuse_one_for_two(store: Store, ranks: Ranks, gpu: str) -> None:
    """NCCL does not work where two processes have one GPU, and says so in a way that hides the cause.

    Args:
        store: In which the processes tell each other.
        ranks: Who this one is.
        gpu: Its GPU, by a name that no other has.

    Raises:
        ConfigError: Another process has it too; each process raises it.
    """
    store.set(f"gpu {ranks.rank}", gpu)
    used = Counter(store.get(f"gpu {rank}").decode() for rank in range(ranks.world_size))
    name, most = used.most_common(1)[0]
    if most > 1:
        what = f"{most} of {ranks.world_size} processes have one GPU ({name})"
        fix = "no more processes on a machine than GPUs that they see, or trainer.accelerator=cpu"
        raise ConfigError("trainer.devices", what, fix)


@contextmanager
def _quiet(ranks: Ranks) -> Iterator[None]:
    """Only the first process logs what all of them do."""
    logger = logging.getLogger("tl_experiments")
    level = logger.level
    if not ranks.first:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _losing_others(ranks: Ranks) -> Iterator[None]:
    """What torch says where another process is gone, in one line."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise TrainingError(
            f"process {ranks.rank} of {ranks.world_size}",
            f"another process of this job ended or did not answer ({first_line(error)})",
            "see what it said; the same command goes on from the last resume point",
        ) from error


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
