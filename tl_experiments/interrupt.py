"""Signals that let a run end at its next safe point. Standard library only."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tl_experiments.errors import SIGNALLED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_ECHO_S = 0.5  # a signal this soon after the first is the same: launchers pass on what a terminal has sent to all


class Interrupted(BaseException):
    """A signal asks this process to end. No ``Exception``: what mends or reports errors must not swallow it.

    Args:
        signum: Of the signal.
        where: How far the work came, such as ``after step 12 of 40``.
    """

    def __init__(self, signum: int, where: str | None = None) -> None:
        super().__init__(signum, where)
        self.signum, self.where = signum, where

    @property
    def exit_code(self) -> int:
        """What a shell shows for a command that this signal ended: 130, 143, 138, 140."""
        return SIGNALLED + self.signum

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"{name} {self.where}" if self.where else name


class Detached(Interrupted):
    """A signal ended a command whose tasks go on elsewhere.

    Args:
        signum: Of the signal.
        tasks: How many go on.
        cluster: Where.
        folder: Of the sweep.
    """

    def __init__(self, signum: int, tasks: int, cluster: str, folder: Path) -> None:
        super().__init__(signum)
        self.args = signum, tasks, cluster, folder
        count, them = ("a task goes", "it") if tasks == 1 else (f"{tasks} tasks go", "them")
        self._message = (
            f"{count} on at {cluster}: the same command again follows {them}, tl status {folder} shows {them}, "
            f"tl cancel {folder} ends {them}"
        )

    def __str__(self) -> str:
        return self._message


class Cancelled(Interrupted):
    """Another command ended the tasks of this one.

    Args:
        tasks: How many.
        cluster: Where they were.
    """

    def __init__(self, tasks: int, cluster: str) -> None:
        super().__init__(signal.SIGTERM)
        self.args = tasks, cluster
        count = "a task" if tasks == 1 else f"{tasks} tasks"
        self._message = f"{count} on {cluster}, by tl cancel: the same command again runs what is not done"

    def __str__(self) -> str:
        return self._message


@dataclass
class _State:
    process: int = 0  # that installed the handlers: a loader forked from it leaves signals to it
    signals: tuple[int, ...] = ()
    received: int | None = None
    received_at: float = 0.0
    at_once: bool = False
    insist: bool = True
    held: bool = False


_state = _State()


def install(signals: Iterable[int] = SIGNALS, *, at_once: bool = False, insist: bool = True) -> None:
    """From now on these signals are noted for ``requested`` and ``check``; a second one raises wherever it comes.

    Args:
        signals: Numbers.
        at_once: Raise ``Interrupted`` at the first signal too, except within ``postponed``.
        insist: Without, a second one changes nothing: a cluster repeats its signals, and kills what takes too long.

    Raises:
        ValueError: Not in the main thread.
    """
    _state.process, _state.received, _state.at_once, _state.insist = os.getpid(), None, at_once, insist
    _state.signals = tuple(signals)
    take_back()


def take_back() -> None:
    """Put the handlers of ``install`` back where a library has put its own in front of them; without, do nothing."""
    for one in _state.signals:
        signal.signal(one, _note)


@contextmanager
def installed(signals: Iterable[int] = SIGNALS, *, at_once: bool = False) -> Iterator[None]:
    """``install`` for the body alone: afterwards the handlers are those of before, and nothing is requested."""
    before = {one: signal.getsignal(one) for one in signals}
    install(before, at_once=at_once)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        _state.signals, _state.received, _state.at_once = (), None, False


def postponed() -> AbstractContextManager[None]:
    """In the body signals are only noted: it asks for them at its own safe points."""
    return _during("at_once", False)


def patient() -> AbstractContextManager[None]:
    """In the body a second signal changes nothing: it must not be left half done."""
    return _during("insist", False)


def held(hold: bool = True) -> AbstractContextManager[None]:
    """In the body ``check`` lets a first signal pass: others wait for what it does, and will end together with it."""
    return _during("held", hold)


@contextmanager
def _during(what: str, value: bool) -> Iterator[None]:
    before = getattr(_state, what)
    setattr(_state, what, value)
    try:
        yield
    finally:
        setattr(_state, what, before)


def requested() -> int | None:
    """The signal that asked this process to end; None without one."""
    return _state.received


def check(where: str | None = None) -> None:
    """Raise ``Interrupted`` if a signal has asked for it; to be called where nothing is half done."""
    if _state.received is not None and not _state.held:
        raise Interrupted(_state.received, where)


def _note(signum: int, _frame: FrameType | None) -> None:
    if os.getpid() != _state.process:
        return
    second = _state.received is not None
    if second and (not _state.insist or time.monotonic() - _state.received_at < _ECHO_S):
        return
    _state.received, _state.received_at = signum, time.monotonic()
    if second or _state.at_once:
        raise Interrupted(signum)
