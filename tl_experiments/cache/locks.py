"""Locks between processes that need nothing from the file system but exclusive creation and atomic rename.

``flock`` is a no-op on some cluster file systems. A lock here is a file that says who holds it; who finds that the
holder is gone takes it over. Two holders by a lost race are possible in theory: what a lock guards must stand double
work.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

HEARTBEAT_S = 5.0
SILENCE_S = 60.0  # without a heartbeat, after which a holder that we cannot look at counts as gone
_IN_HANDS_S = 0.5


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Args:
        host: Machine, boot and process namespace, within which ``pid`` means something.
        pid: Of the process.
        started: When it was started, in clock ticks after boot; 0 where the system does not tell. A new process may
            have an old one's number, but not its start as well.
        since: Unix time at which it took the lock.
    """

    host: str
    pid: int
    started: int
    since: float


class Held:
    """A lock that this process holds; a thread touches its file, so that other machines see that it is alive."""

    def __init__(self, path: Path, content: bytes, lost: Callable[[], None] | None) -> None:
        self.path, self._content, self._pid = path, content, os.getpid()
        self._released, self._lost = threading.Event(), lost
        threading.Thread(target=self._beat, daemon=True).start()

    def is_lost(self) -> bool:
        """Whether this process was taken for dead, such as after it was stopped for more than a minute."""
        for _ in range(2):
            try:
                return self.path.read_bytes() != self._content
            except FileNotFoundError:  # or another process has it in its hands for a moment: see _remove_stale
                time.sleep(_IN_HANDS_S)
            except OSError:
                return False  # nobody can tell
        return True

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            if not self.is_lost():
                with suppress(OSError):
                    os.utime(self.path)
            elif not self._released.is_set():
                if self._lost is not None:
                    self._lost()
                return

    def release(self) -> None:
        """Give the lock back; a second time, or in a forked child, it does nothing."""
        if self._released.is_set() or os.getpid() != self._pid:
            return
        self._released.set()
        with suppress(OSError):
            if self.path.read_bytes() == self._content:  # else somebody took us for dead
                self.path.unlink()

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def try_hold(path: Path, lost: Callable[[], None] | None = None) -> Held | None:
    """Take a lock, or None where a living process has it.

    A lock is stale if its process on this host is gone, or its file, of another host, was not touched for a minute.

    Args:
        path: Of the lock's file; its folder is made.
        lost: Called, in a thread, when it turns out that another process has taken this one for dead.

    Raises:
        OSError: The file cannot be written.
    """
    own = {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid()) or 0, "since": time.time()}
    content = json.dumps({**own, "token": secrets.token_hex(4)}).encode()
    for _ in range(3):  # the folder may be missing, then a stale lock be in the way
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if not _remove_stale(path):
                return None
        else:
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(content)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            return Held(path, content, lost)
    return None


def holder(path: Path) -> Holder | None:
    """Who holds the lock, or None where it is free, stale or unreadable."""
    seen = _look(path)
    return None if seen is None or _is_stale(path, seen) else seen.holder


def is_on_this_host(found: Holder) -> bool:
    """Whether its number is that of a process that this one can signal."""
    return found.host == _host()


def signature() -> str:
    """This process in a file's name: host, number and start."""
    return f"{_short_host()}-{os.getpid()}-{_started(os.getpid()) or 0}"


def is_gone(signed: str) -> bool:
    """Whether a ``signature`` is of a process on this host that has ended."""
    host, pid, started = signed.split("-")
    return host == _short_host() and not _is_alive(int(pid), int(started))


@dataclass(frozen=True)
class _Seen:
    """A lock's file at one moment; equal only to itself untouched."""

    content: bytes
    mtime_ns: int
    inode: int

    @property
    def holder(self) -> Holder | None:
        try:
            entry: dict[str, Any] = json.loads(self.content)
            return Holder(str(entry["host"]), int(entry["pid"]), int(entry["started"]), float(entry["since"]))
        except (ValueError, KeyError, TypeError):
            return None  # its process is about to write it, or was killed before it could


def _look(path: Path) -> _Seen | None:
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            return _Seen(stream.read(), status.st_mtime_ns, status.st_ino)
    except FileNotFoundError:
        return None


def _is_stale(path: Path, seen: _Seen) -> bool:
    found = seen.holder
    if found is not None and found.host == _host():
        return not _is_alive(found.pid, found.started)
    return _now_ns(path.parent) - seen.mtime_ns > SILENCE_S * 1e9


def _now_ns(folder: Path) -> int:
    """By the clock that gives files there their times: a file server's may differ from ours by more than a minute."""
    probe = folder / f".{secrets.token_hex(8)}.now"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            return probe.stat().st_mtime_ns
        finally:
            probe.unlink()
    except OSError:  # it cannot be written, and nothing in it can be taken over
        return time.time_ns()


def _remove_stale(path: Path) -> bool:
    """Whether it is worth trying to create the file again."""
    seen = _look(path)
    if seen is None:
        return True
    if not _is_stale(path, seen) or _look(path) != seen:
        return False
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.stale")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    taken = _look(aside) == seen
    if not taken:  # another process was faster, and this is its new lock: put it back
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return taken


def _is_alive(pid: int, started: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    seen = _started(pid)
    return seen is None or started in (0, seen)


def _started(pid: int) -> int | None:
    """Start time in clock ticks after boot; -1 of a process that ended and was not waited for, None where unknown."""
    try:
        # the second field, the command's name, may hold blanks and brackets
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


@cache
def _host() -> str:
    # names repeat between machines, boots between containers of one machine
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    known = (platform.node(), boot.read_text().strip() if boot.exists() else "")
    return " ".join([*known, os.readlink(space) if os.path.islink(space) else ""]).strip()


def _short_host() -> str:
    return hashlib.sha256(_host().encode()).hexdigest()[:8]
