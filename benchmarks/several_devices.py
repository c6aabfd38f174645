"""One job on two processes against one (bar ddp), and against a script written by hand that does the same.

    TL_SHARED_DATA=... python benchmarks/several_devices.py    # about 15 minutes

A process stands for a device: it has a core and a thread of its own, gradients go over gloo. The batch is divided, so
that both ways take the same steps. The figure is the slope over epochs, so that start and decoding fall out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measure import (
    Report,
    Row,
    Times,
    alternate,
    arguments,
    fix_threads,
    line,
    ratios,
    require_equal,
    same_side_noise,
    spread,
)
from work import PEERS, Ours, Work, overrides, prepare

WORLD = 2
TOLERANCE = 1e-3  # rounding of some steps, in val NLL
ON_TWO = ["trainer=ddp", f"trainer.devices={WORLD}", "trainer.batch_scaling=none"]


def ours(work: Work, *more: str) -> tuple[float, list[float]]:
    """Seconds and val NLL an epoch of our command."""
    with Ours() as side:
        taken = side.run(overrides(work, "feature_cache=off", "dataset.on_bad=error", *more), multirun=False)
        return taken, side.curves()[0]


def by_hand(work: Work, world: int) -> tuple[float, list[float]]:
    """The same of the script."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command = [*launcher, str(PEERS / "by_hand_ddp.py"), json.dumps(asdict(work))]
    with tempfile.TemporaryDirectory(prefix="tl-bench-") as folder:
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        taken = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"by_hand_ddp failed ({done.returncode}):\n{done.stderr[-3000:]}")
    account: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return taken, account["val_nll"][0]


def main() -> None:
    """Measure and write."""
    given = arguments(__doc__, repeats=5).parse_args()
    fix_threads(WORLD)
    repeats, sizes, epochs = (2, (96, 16), (1, 3)) if given.short else (given.repeats, (256, 32), (1, 5))
    report = Report("several_devices", given.short)
    with tempfile.TemporaryDirectory(prefix="tl-bench-") as folder:
        work = prepare(Path(folder), *sizes, image_size=112).of("full", epochs[1])
        sides: dict[str, Callable[[Work], tuple[float, list[float]]]] = {
            "one": lambda work: ours(work),
            "two": lambda work: ours(work, *ON_TWO),
            "one by hand": lambda work: by_hand(work, 1),
            "two by hand": lambda work: by_hand(work, WORLD),
        }
        curves = {name: side(work)[1] for name, side in sides.items()}
        for count in ("one", "two"):
            worst = require_equal(f"{count}: val NLL", curves[count], curves[f"{count} by hand"], TOLERANCE)
            report.details[f"difference {count}"] = worst

        def an_epoch(side: Callable[[Work], tuple[float, list[float]]]) -> float:
            times = {number: side(replace(work, epochs=number))[0] for number in epochs}
            return line(times)(1) - line(times)(0)

        times: dict[str, Times] = alternate(
            {name: (lambda side=side: an_epoch(side)) for name, side in sides.items()}, repeats, again="two"
        )
    report.details["seconds an epoch"] = times
    noise = same_side_noise(times["two"], times["again"])
    for name in ("", " by hand"):
        efficiency = [ratio / WORLD for ratio in ratios(times[f"one{name}"], times[f"two{name}"])]
        report.add(
            Row(
                bar="ddp",
                what=f"speed-up of {WORLD} processes{name or ', ours'}, over {WORLD}",
                peer="1 process",
                sense=">=",
                target=None if name else 0.85,
                limit="1",
                noise=noise,
                remark="resnet18, 112 px, batch 32 divided by 2, gloo over one machine's memory",
                **spread(efficiency),
            )
        )
    report.add(
        Row(
            bar="ddp",
            what=f"time of an epoch on {WORLD} processes",
            peer="by_hand_ddp",
            sense="<=",
            target=1.1,
            limit="1",
            noise=noise,
            **spread(ratios(times["two"], times["two by hand"])),
        )
    )
    say_where = report.write()
    sys.stderr.write(f"{say_where}\n")


if __name__ == "__main__":
    main()
