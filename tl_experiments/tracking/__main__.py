"""``python -m tl_experiments.tracking NAME FOLDER``: the process that feeds one tracker.

Its options, and the seconds that it has after the command's end, come as a line of JSON on stdin; the end of stdin says
that the command has ended, however it did. With ``push`` in that line it enters finished runs and says as JSON, a line
each, what became of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tl_experiments.errors import OK, SOME_FAILED
from tl_experiments.tracking.follow import Tracker, follow, reason
from tl_experiments.tracking.process import LATE
from tl_experiments.tracking.push import push

_LESS_URGENT = 10  # niceness: training goes first


def main(name: str, folder: Path) -> int:
    """Follow the sweep in ``folder`` and return the exit code."""
    with contextlib.suppress(OSError):
        os.nice(_LESS_URGENT)
    stdin = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115  select() must see what is not read yet
    order = json.loads(stdin.readline())
    try:
        tracker = make(name, folder, order["options"], _say)
    except Exception as error:
        _say(f"{name}: cannot be used ({reason(error)}); the records are complete without it")
        return SOME_FAILED if "push" in order else OK
    if "push" in order:
        threading.Thread(target=_end_with, args=(stdin,), daemon=True).start()
        for one in push(folder, tracker, **order["push"]):
            _say(json.dumps(asdict(one)))
        for line in tracker.missing():
            _say(line)
        return OK
    over = False

    def ended(seconds: float) -> bool:
        nonlocal over
        if not over and select.select([stdin], [], [], seconds)[0]:
            over = True
            _end_in(order["finish_s"], tracker)
        return over

    follow(folder, name, tracker, ended, _say)
    for line in tracker.missing():
        _say(line)
    return OK


def make(name: str, folder: Path, options: dict[str, Any], say: Callable[[str], None]) -> Tracker:
    """The tracker called ``name``; its library is imported here and nowhere else."""
    if name == "csv":
        from tl_experiments.tracking.csv import Csv

        return Csv(folder, **options)
    if name == "tensorboard":
        from tl_experiments.tracking.tensorboard import TensorBoard

        return TensorBoard(folder, **options)
    if name == "mlflow":
        from tl_experiments.tracking.mlflow import Mlflow

        return Mlflow(folder, **options)
    from tl_experiments.tracking.wandb import Wandb

    return Wandb(folder, say, _pictures, **options)


def _pictures(config: Mapping[str, Any], items: Sequence[str]) -> Mapping[str, bytes]:
    from tl_experiments.data.pictures import pictures

    return pictures(config, items)


def _end_with(stdin: io.FileIO) -> None:
    """The command keeps its end open: when it is gone, whoever ended it wants this ended too."""
    stdin.read()
    os._exit(LATE)


def _end_in(seconds: float, tracker: Tracker) -> None:
    """A tracker whose server is gone must not keep the process for ever, nor be silent about it."""

    def end() -> None:
        for line in tracker.missing():
            _say(line)
        os._exit(LATE)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens when the command was killed
        os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    code = main(sys.argv[1], Path(sys.argv[2]))
    os._exit(code)  # threads and exit handlers of other people's libraries may wait for ever
