"""One job on two processes against one (bar ddp), and against a script written by hand that does the same.

    TL_SHARED_DATA=... python benchmarks/several_devices.py    # about 6 minutes

A process stands for a device: it has a core and a thread of its own, gradients go over gloo. The batch is divided, so
that both ways take the same steps. The figure is the median time of an epoch, its validation included, without the
first, so that start and decoding fall out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from measure import (
    Report,
    Row,
    Times,
    alternate,
    arguments,
    fix_threads,
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
    """Median seconds of an epoch, and val NLL after each, of our command."""
    with Ours() as side:
        side.run(overrides(work, "feature_cache=off", *more), multirun=False)
        (record,) = side.records()
        ends = [line["seconds"] for line in side.lines(record)]
        return median(later - earlier for earlier, later in pairwise(ends[2:])), side.curves()[0]


def by_hand(work: Work, world: int) -> tuple[float, list[float]]:
    """The same of the script."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command = [*launcher, str(PEERS / "by_hand_ddp.py"), json.dumps(asdict(work))]
    with tempfile.TemporaryDirectory(prefix="tl-bench-") as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"by_hand_ddp failed ({done.returncode}):\n{done.stderr[-3000:]}")
    account: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return median(account["epoch_s"][1:]), account["val_nll"][0]


def main() -> None:
    """Measure and write."""
    given = arguments(__doc__, repeats=3).parse_args()
    fix_threads(WORLD)
    repeats, sizes, epochs = (1, (96, 16), 4) if given.short else (given.repeats, (256, 32), 5)
    report = Report("several_devices", given.short)
    curves: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="tl-bench-") as folder:
        work = prepare(Path(folder), *sizes, image_size=112).of("full", epochs)
        sides: dict[str, Callable[[], tuple[float, list[float]]]] = {
            "one": lambda: ours(work),
            "two": lambda: ours(work, *ON_TWO),
            "one by hand": lambda: by_hand(work, 1),
            "two by hand": lambda: by_hand(work, WORLD),
        }

        def an_epoch(name: str) -> float:
            taken, curves[name] = sides[name]()
            return taken

        times: dict[str, Times] = alternate({name: partial(an_epoch, name) for name in sides}, repeats, again="two")
    for count in ("one", "two"):
        worst = require_equal(f"{count}: val NLL", curves[count], curves[f"{count} by hand"], TOLERANCE)
        report.details[f"difference {count}"] = worst
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
    sys.stderr.write(f"{report.write()}\n")


if __name__ == "__main__":
    main()
