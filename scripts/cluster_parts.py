"""What clusters for tests share: processes told by a mark in their environment, free ports, private files.

A pid that was written down may belong to somebody else by now. So there are no pid files: a process is a cluster's own
if the kernel says that it was started with the cluster's folder in its environment.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def all_pids() -> list[int]:
    """Of every process."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def environment(pid: int) -> dict[str, str]:
    """What a process was started with; empty where it is gone, a zombie or somebody else's."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def arguments(pid: int) -> list[str]:
    """Its command line; empty where it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def marked(mark: str, value: str) -> dict[int, list[str]]:
    """Processes with ``mark=value`` in their environment, each with its command line."""
    found = {pid: arguments(pid) for pid in all_pids() if environment(pid).get(mark) == value}
    return {pid: command for pid, command in found.items() if command and command[0]}


def send(pid: int, signum: int) -> None:
    """A signal to a process that may have ended meanwhile."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


def end(find: Callable[[], list[int]], patience_s: float) -> None:
    """SIGTERM to what ``find`` finds until it finds nothing, SIGKILL after ``patience_s``.

    Raises:
        TimeoutError: Something is still there half a minute later.
    """
    began, told = time.monotonic(), set[int]()
    while pids := find():
        waited_s = time.monotonic() - began
        if waited_s > patience_s + 30:
            raise TimeoutError(f"processes {pids} do not end")
        for pid in pids:
            if waited_s >= patience_s:
                send(pid, signal.SIGKILL)
            elif pid not in told:
                told.add(pid)
                send(pid, signal.SIGTERM)
        time.sleep(0.05)


def free_ports(n: int) -> Iterator[int]:
    """Different free ports of 127.0.0.1, below those that outgoing connections take."""
    for port in random.SystemRandom().sample(range(20000, 32000), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
        n -= 1
        if not n:
            return
    raise OSError("no free ports between 20000 and 32000")


def private(path: Path, content: bytes) -> None:
    """A file that only its owner reads."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
