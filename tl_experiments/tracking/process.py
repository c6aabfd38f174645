"""The command's side of the tracking processes: started before training, told when it ends, never waited for long."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tl_experiments.errors import ConfigError, TrackingError
from tl_experiments.interrupt import Interrupted
from tl_experiments.safe_text import plain
from tl_experiments.tracking.push import Pushed

LATE = 3  # exit code of a tracker that had no time to finish
_FINISH_S = 25.0  # that a tracker has after the command's end, to say itself what is missing
_WAIT_S = 30.0  # after which it is ended
_WAIT_AFTER_CTRL_C_S = 5.0
_PUSH_S = "600"  # that W&B may take to upload a run on request
_QUIET_S = 2.0  # of waiting before it is said
_NEEDS = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}

logger = logging.getLogger(__name__)


def check_installed(trackers: Iterable[str]) -> None:
    """Raises ``ConfigError`` for a tracker whose library is not there."""
    for name in trackers:
        absent = [module for module in _NEEDS.get(name, ()) if importlib.util.find_spec(module) is None]
        if absent:
            raise ConfigError(
                f"tracker={name}", f"{' and '.join(absent)} not installed", f"pip install 'tl-experiments[{name}]'"
            )


@contextmanager
def following(folder: Path, trackers: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Feed ``trackers`` from the sweep in ``folder`` while the body runs, and for a bounded time afterwards.

    Args:
        folder: Of the sweep; it need not exist yet.
        trackers: Options of each, by name.
    """
    started = [_start(name, folder, options) for name, options in trackers.items()]
    patience = _WAIT_S
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        patience = _WAIT_AFTER_CTRL_C_S
        raise
    finally:
        _finish(started, patience)


def pushing(
    folder: Path, name: str, options: Mapping[str, Any], only: Collection[str] | None, force: bool
) -> Iterator[Pushed | str]:
    """Enter finished runs of the sweep in ``folder`` in one tracker; see ``push`` for the arguments.

    Yields:
        What became of each run, as it happens, and lines for the user in between.

    Raises:
        TrackingError: The process that did it ended on the way.
    """
    order = {"options": options, "push": {"only": None if only is None else sorted(only), "force": force}}
    # Large files take longer than the few seconds that a training command would wait
    process = _launch(name, folder, order, {"WANDB_FINISH_TIMEOUT": _PUSH_S})
    assert process.stdout is not None
    try:
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            yield Pushed(**json.loads(line)) if line.startswith("{") else plain(line)
        if process.wait() != 0:
            raise TrackingError(name, f"its process ended with {process.returncode}", "the same command again goes on")
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class _Started:
    name: str
    process: subprocess.Popen[bytes]
    lines: threading.Thread


def _start(name: str, folder: Path, options: Mapping[str, Any]) -> _Started:
    process = _launch(name, folder, {"options": options, "finish_s": _FINISH_S})
    thread = threading.Thread(target=_pass_on, args=(process,), daemon=True, name=f"lines of {name}")
    thread.start()
    return _Started(name, process, thread)


def _launch(
    name: str, folder: Path, order: Mapping[str, Any], unless_set: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        # -P: a json.py in the current folder is none of its business
        [sys.executable, "-P", "-m", "tl_experiments.tracking", name, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # other people's libraries; ours speaks on stdout
        env={**unless_set, **os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C reaches every process of a terminal's group; this command decides
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    return process


def _pass_on(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        logger.info("%s", plain(line.decode(errors="replace")))


def _finish(started: list[_Started], patience: float) -> None:
    """Say that the command has ended, wait for all together, and end what is late."""
    for one in started:
        assert one.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            one.process.stdin.close()
    since = time.monotonic()
    try:
        if _waiting(started, _QUIET_S):
            names = " and ".join(one.name for one in _waiting(started, 0))
            logger.info("waiting for %s, at most %.0f s", names, patience)
        _waiting(started, patience - _QUIET_S)
    finally:
        for one in started:
            if one.process.poll() is None:
                one.process.kill()
            if one.process.wait() != 0:
                logger.info("%s", _late(one.name, time.monotonic() - since))
            one.lines.join(1)


def _waiting(started: list[_Started], seconds: float) -> list[_Started]:
    """Those that still work after so many seconds, or none as soon as all have ended."""
    until = time.monotonic() + seconds
    for one in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(max(0.0, until - time.monotonic()))
    return [one for one in started if one.process.poll() is None]


def _late(name: str, seconds: float) -> str:
    return f"{name}: not done after {seconds:.0f} s and ended; the same command again enters what is missing"
