"""The processes of a task on this machine: one, or the ranks that train its job together.

The ranks find each other by torchrun's variables. torch's own launchers, which begin a command or a function in several
processes, leave open what becomes of signals, of the log and of ranks whose starter was killed.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

from tl_experiments import interrupt
from tl_experiments.sweeps.tasks import Task
from tl_experiments.sweeps.worker import Send, work
from tl_experiments.training.ending import OUT_OF_MEMORY_HINT

_SETTLE_S = 2.0  # after a rank has failed, for the others to say what befell them: one of it is the cause
_GRACE_S = 30.0  # for the others to end where a rank has ended as it was asked to, or rank 0 as it should
_LOOK_UP_S = 0.2  # between two looks whether there was a signal


@dataclass(frozen=True, order=True)
class _Fault:
    """A rank's bad end; the least of several is their cause."""

    likelihood: int  # to be an effect of another's
    when: float
    rank: int
    message: tuple[Any, ...] = field(compare=False)


@dataclass
class _Rank:
    number: int
    process: Any
    report: connection.Connection
    has_ended: bool = False  # by its own word


class Processes:
    """The processes of a task. What rank 0 says is what the task says; a rank that fails ends the others.

    Args:
        context: Of multiprocessing.
        task: With as many ranks as the trainer of its job has devices.
        folder: Of the sweep.
        threads: Of each rank; None leaves torch's.
        environment: Of each rank, before it imports torch.
        anew: Whether logs begin anew.
    """

    def __init__(
        self,
        context: Any,
        task: Task,
        folder: Path,
        threads: int | None,
        environment: Mapping[str, str],
        *,
        anew: bool = True,
    ) -> None:
        trainer = task.jobs[0].config.trainer
        self._left = set(range(len(task.jobs))) - task.done
        self._together = trainer.name != "default"
        self._ranks: list[_Rank] = []
        self._faults: list[_Fault] = []
        self._asked = False
        self._deadline = float("inf")
        self._reserved = _reserve_port() if self._together else None
        try:
            for number in range(trainer.devices):
                variables = {}
                if self._reserved is not None:
                    variables = torchrun_variables(number, trainer.devices, self._reserved.getsockname()[1])
                receiver, sender = context.Pipe(duplex=False)
                arguments = (task, folder, threads, {**environment, **variables}, anew, sender)
                process = context.Process(target=work, args=arguments, name=f"task {task.id} rank {number}")
                process.start()
                sender.close()
                self._ranks.append(_Rank(number, process, receiver))
        except BaseException:  # nobody would know of those that have started
            self.kill()
            raise

    @property
    def over(self) -> bool:
        """Whether all have ended and ``news`` has told it."""
        return not self._ranks

    def waitables(self) -> Sequence[Any]:
        """What ``multiprocessing.connection.wait`` wakes for when there are news."""
        pipes = [rank.report for rank in self._ranks if not rank.report.closed]
        return [*pipes, *(rank.process.sentinel for rank in self._ranks)]

    def news(self) -> Iterator[tuple[Any, ...]]:
        """What the task says, as ``worker.work`` does; where it died before it could, the last is ``left``."""
        for rank in list(self._ranks):
            alive = rank.process.is_alive()  # before its last words are read
            yield from self._said(rank)
            if not alive:
                self._leaves(rank)
        if time.monotonic() >= self._deadline:
            self.kill()
        if self.over:
            if self._reserved is not None:
                self._reserved.close()
            if self._faults and self._left:
                yield min(self._faults).message

    def ask_to_end(self) -> None:
        """Tell each rank, once, to write what a resume needs and to end."""
        if not self._asked:
            self._asked = True
            for rank in self._ranks:
                rank.process.terminate()

    def kill(self) -> None:
        """End what has not ended."""
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.join()
        self._ranks.clear()
        if self._reserved is not None:
            self._reserved.close()

    def _said(self, rank: _Rank) -> Iterator[tuple[Any, ...]]:
        """Pass on what rank 0 said, and keep of the others only what went wrong."""
        try:
            while not rank.report.closed and rank.report.poll():
                message, when = rank.report.recv()
                match message:
                    case "left", state, cause, final:
                        asked = self._asked and state == "interrupted"
                        named = f"rank {rank.number}: {cause}" if self._together and not final else cause
                        self._blame(rank, _Fault(0 if asked else 2, when, rank.number, ("left", state, named, final)))
                    case "ended", _, state, _, _ if self._together and state != "ok":
                        self._blame(rank, _Fault(2, when, rank.number, message))
                    case "ended", position, _, _, _:
                        rank.has_ended = self._together
                        if rank.number == 0:
                            self._left.discard(position)
                            yield message
                    case _ if rank.number == 0:
                        yield message
        except (EOFError, OSError):  # all is said
            rank.report.close()

    def _leaves(self, rank: _Rank) -> None:
        rank.process.join()
        self._ranks.remove(rank)
        if not rank.has_ended:
            code = rank.process.exitcode
            cause = cause_of_death(code, f"rank {rank.number}" if self._together else None)
            # Others hear of a death at once, and may report what it did to them before it is seen here. torch aborts
            # a process whose neighbour is gone.
            likelihood = 3 if code in (0, -signal.SIGABRT) else 1
            self._blame(rank, _Fault(likelihood, time.monotonic(), rank.number, ("left", "failed", cause, False)))
        if rank.number == 0:
            self._end_within(_GRACE_S)

    def _blame(self, rank: _Rank, fault: _Fault) -> None:
        rank.has_ended = True
        self._faults.append(fault)
        self._end_within(_GRACE_S if fault.message[1] == "interrupted" or not self._together else _SETTLE_S)

    def _end_within(self, seconds: float) -> None:
        self._deadline = min(self._deadline, time.monotonic() + seconds)


def run_ranks(context: Any, task: Task, folder: Path, threads: int | None, send: Send) -> None:
    """Start the ranks of ``task`` from this process and ``send`` what they say; a signal reaches each of them."""
    processes = Processes(context, task, folder, threads, {}, anew=False)
    try:
        with interrupt.postponed():
            while not processes.over:
                connection.wait(processes.waitables(), _LOOK_UP_S)
                if interrupt.requested() is not None:
                    processes.ask_to_end()
                for message in processes.news():
                    send(message)
    finally:
        processes.kill()


def torchrun_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank, where all are on this machine."""
    return {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world_size)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def cause_of_death(code: int, who: str | None = None) -> str:
    """What an exit code says of a process that ended before its work."""
    if code >= 0:
        return f"{who or 'the job'} called exit({code}) before it was done"
    known = {int(one): one.name for one in signal.Signals}
    name = known.get(-code, f"signal {-code}")
    hint = f": out of memory? {OUT_OF_MEMORY_HINT}" if name == "SIGKILL" else ""
    return f"{who + ' ' if who else ''}killed by {name}{hint}"


def _reserve_port() -> socket.socket:
    """A free port that is ours as long as the socket is open: it does not listen, so that rank 0 can, and nobody else
    is given it."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("", 0))
    return reserved
