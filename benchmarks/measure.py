"""How the benchmarks measure: sides in turn, medians with their spread, and the facts that a figure needs.

A figure is one row of a result file: what, against whom, the ratio pair by pair, the physical limit and the target.
Nothing here imports torch, so that measuring does not warm up what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("hydra-core", "numpy", "omegaconf", "pillow", "pytorch-lightning", "scikit-learn", "timm", "torch"),
    *("torchvision", "fastai"),
)

Times = list[float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure.

    Args:
        bar: Short name of the target, the same in every release.
        what: What was measured.
        peer: What it stands against.
        value: Median; a ratio unless ``unit`` says otherwise.
        low: Least of the repeats.
        high: Most of the repeats.
        sense: Whether the target is the least or the most that is wanted.
        target: None where the figure only informs.
        unit: ``x`` for ratios.
        limit: What physics allows, in a few words.
        noise: How far a side's ratio to itself was from 1; None where the figure is no time.
        remark: How it was composed, and what else a reader must know.
    """

    bar: str
    what: str
    peer: str
    value: float
    low: float
    high: float
    sense: Literal[">=", "<="]
    target: float | None
    unit: str = "x"
    limit: str = ""
    noise: float | None = None
    remark: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target."""
        if self.target is None:
            return None
        return self.value >= self.target if self.sense == ">=" else self.value <= self.target

    @property
    def clear(self) -> bool | None:
        """Whether the noise is under a third of the margin between the ratio and 1."""
        if self.noise is None or self.unit != "x":
            return None
        return self.noise < abs(self.value - 1) / 3


@dataclass
class Report:
    """The rows of one script, written as ``results/<name>.json``, or ``<name>_short.json`` for the reduced set.

    Args:
        name: Of the script.
        short: Whether the reduced set ran.
        rows: In the order of the page.
        details: Everything that the figures come from.
    """

    name: str
    short: bool
    rows: list[Row] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Keep a row, and say it."""
        self.rows.append(row)
        told = {True: "met", False: "NOT MET", None: ""}[row.met]
        target = "" if row.target is None else f"{row.sense} {row.target:g}"
        say(f"{row.bar:<4} {row.what} / {row.peer}: {row.value:.4g} ({row.low:.4g} to {row.high:.4g}) {target} {told}")

    def write(self) -> Path:
        """Write the file."""
        path = RESULTS / f"{self.name}{'_short' if self.short else ''}.json"
        content = {
            "command": shlex.join(["python", f"benchmarks/{self.name}.py", *sys.argv[1:]]),
            "set": "short" if self.short else "full",
            "machine": machine(),
            "versions": versions(),
            "commit": _commit(),
            "rows": [{**asdict(row), "met": row.met, "clear": row.clear} for row in self.rows],
            "details": self.details,
        }
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
        return path


def say(line: str) -> None:
    """One line for who waits."""
    sys.stderr.write(line + "\n")


def arguments(description: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """What every script understands: ``--short`` and ``--repeats``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the reduced set: smaller images, fewer repeats")
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def fix_threads(cores: int = 1) -> None:
    """Give this process and all its children ``cores`` cores, with one thread each: the same budget for every side."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def alternate(
    sides: Mapping[str, Callable[[], float]], repeats: int, *, warm_up: bool = False, again: str | None = None
) -> dict[str, Times]:
    """Let the sides take turns, A B A B, so that a machine that slows down slows all of them.

    Args:
        sides: Name -> a call that returns its own seconds.
        repeats: Turns of each.
        warm_up: Go through all sides once uncounted.
        again: A side that also runs against itself, under the name ``again``: what differs is noise.
    """
    calls = dict(sides) if again is None else {**sides, "again": sides[again]}
    times: dict[str, Times] = {name: [] for name in calls}
    for number in range(repeats + warm_up):
        for name, call in calls.items():
            taken = call()
            if number >= warm_up:
                times[name].append(taken)
                say(f"     {name}: {taken:.3f} s")
    return times


def ratios(above: Times, below: Times) -> Times:
    """Turn by turn."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most, under the names of ``Row``."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values)}


def same_side_noise(once: Times, again: Times) -> float:
    """How far the ratio of a side to itself strayed from 1, at the median of the turns."""
    return statistics.median(abs(ratio - 1) for ratio in ratios(once, again))


def line(points: Mapping[int, float]) -> Callable[[float], float]:
    """The straight line through two measured points: what a long run costs, from two short ones.

    It ends the benchmark where the longer run took less: what the machine did besides then outweighs what is measured.
    """
    (x0, y0), (x1, y1) = sorted(points.items())
    slope = (y1 - y0) / (x1 - x0)
    if slope <= 0:
        raise SystemExit(f"{x1} epochs took {y1:.2f} s and {x0} took {y0:.2f} s: the machine is too busy to measure on")
    return lambda x: y0 + slope * (x - x0)


def require_equal(what: str, ours: Sequence[float], theirs: Sequence[float], tolerance: float) -> float:
    """Equal before fast: end the benchmark unless both sides say the same.

    Args:
        what: Named in the error.
        ours: Figures.
        theirs: The same of the other side.
        tolerance: Relative to the larger of a pair.

    Returns:
        The largest relative difference.
    """
    if len(ours) != len(theirs) or not ours:
        raise SystemExit(f"{what}: {len(ours)} figures against {len(theirs)}: not the same work, so no time counts")
    worst = max(abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True))
    if not worst <= tolerance:
        raise SystemExit(f"{what}: results differ by {worst:.2g}, at most {tolerance:g} expected: {ours} / {theirs}")
    say(f"     {what}: equal to {worst:.1e}")
    return worst


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores_used": affinity,
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
        "load_1_min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of the packages that take part and are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _commit() -> str:
    git = ["git", "-C", str(RESULTS.parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + (" with changes" if changed.stdout.strip() else "")
