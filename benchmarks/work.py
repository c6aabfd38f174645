"""The work that every side does: which images, which start weights, which order, which optimizer; and our way to do it.

A side is a process: ours is the command line, a peer is a script of ``benchmarks/peers`` that reads the same ``Work``.
Import included, both are timed from outside.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from measure import require_equal
from photos import make_photos

PEERS = Path(__file__).parent / "peers"
SEED = 0
LAST_STAGE = 2  # blocks of resnet18's layer4
LEARNING_RATES = {"feature_extraction": 1e-3, "last_n_blocks": 5e-4, "full": 3e-4}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One training job, or several that differ in the learning rate only.

    Args:
        data: ``<split>/<class>/*.jpg``.
        weights: Of resnet18, safetensors.
        start: Of the head, safetensors: what seed 0 gives it here.
        strategy: Name of the freeze strategy.
        epochs: Each with a validation.
        learning_rates: One job each.
        batch_size: Of training.
        image_size: Side in pixels.
        penalties: Of a head that is solved.
    """

    data: str
    weights: str
    start: str
    strategy: str = "feature_extraction"
    epochs: int = 1
    learning_rates: tuple[float, ...] = (1e-3,)
    batch_size: int = 32
    image_size: int = 224
    penalties: tuple[float, ...] = ()

    def of(self, strategy: str, epochs: int) -> Work:
        """The same images with one job of another strategy."""
        return replace(self, strategy=strategy, epochs=epochs, learning_rates=(LEARNING_RATES[strategy],))


def rates(count: int) -> tuple[float, ...]:
    """Learning rates from 1e-4 to 1e-2, evenly on a log scale."""
    return tuple(float(f"{10 ** (-4 + 2 * number / max(1, count - 1)):.6g}") for number in range(count))


def prepare(folder: Path, train: int, val: int, test: int = 25, **options: Any) -> Work:
    """Photos, start weights and start head under ``folder``, made where they are missing."""
    data = make_photos(folder / f"photos_{train}_{val}_{test}", train, val, test)
    weights, start = folder / "resnet18.safetensors", folder / "head.safetensors"
    if not (weights.exists() and start.exists()):
        subprocess.run([sys.executable, PEERS / "start.py", data, weights, start], check=True)
    return Work(data=str(data), weights=str(weights), start=str(start), **options)


def overrides(work: Work, *more: str) -> list[str]:
    """Our command line for ``work``; ``more`` may be a sweep's overrides, and wins."""
    strategy = [f"freeze_strategy={work.strategy}"]
    if work.strategy == "last_n_blocks":
        strategy.append(f"freeze_strategy.n={LAST_STAGE}")
    settings = [
        "backbone=resnet18", f"backbone.weights={work.weights}", f"backbone.preprocessing.image_size={work.image_size}",
        "dataset=image_folder", f"dataset.root={work.data}", *strategy, "scheduler=constant", f"seed={SEED}",
        f"optimizer.lr={','.join(f'{rate:g}' for rate in work.learning_rates)}", "optimizer.weight_decay=0.01",
        f"trainer.max_epochs={work.epochs}", f"trainer.batch_size={work.batch_size}", "trainer.accelerator=cpu",
        "trainer.precision=32-true", "trainer.gradient_clip_norm=null", "executor.jobs_per_device=1",
        "executor.threads_per_job=1", "name=bench",
    ]  # fmt: skip
    replaced = {one.partition("=")[0] for one in more}
    return [*(one for one in settings if one.partition("=")[0] not in replaced), *more]


class Ours:
    """Our command in a folder of its own; the cache lives and dies with the folder."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tl-bench-")
        self.folder = Path(self._folder.name)

    def run(self, arguments: Sequence[str], *, multirun: bool = True) -> float:
        """Seconds of one ``tl train``, which must succeed."""
        command = [sys.executable, "-m", "tl_experiments", "train", *(["-m"] if multirun else []), *arguments]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        taken = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"our command failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
        return taken

    def records(self) -> list[dict[str, Any]]:
        """Of the runs so far, by strategy and learning rate."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("outputs/bench/*/record.json")]
        return sorted(found, key=lambda one: (one["arm"]["freeze_strategy"], one["learning_rate"]))

    def curves(self) -> list[list[float]]:
        """The val NLL after each epoch, of each run; the validation before the first step is left out."""
        return [[one["val_nll"] for one in self.lines(record) if one["step"] > 0] for record in self.records()]

    def lines(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """The validations of a run."""
        path = self.folder / "outputs" / "bench" / record["job_id"] / "metrics.jsonl"
        return [json.loads(one) for one in path.read_text().splitlines()]

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ours(arguments: Sequence[str]) -> tuple[float, list[dict[str, Any]], list[list[float]]]:
    """Seconds, records and val curves of our command in a fresh folder: nothing cached before."""
    with Ours() as side:
        return side.run(arguments), side.records(), side.curves()


def peer(script: str, work: Work, python: str = sys.executable) -> tuple[float, dict[str, Any]]:
    """Seconds and account of a peer's script. The account: ``val_nll`` a job and epoch, ``test_accuracy`` a job."""
    command = [python, str(PEERS / f"{script}.py"), json.dumps(asdict(work))]
    with tempfile.TemporaryDirectory(prefix="tl-bench-") as folder:
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        taken = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{script} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return taken, json.loads(done.stdout.splitlines()[-1])


def same_results(what: str, curves: Iterable[Sequence[float]], account: dict[str, Any], tolerance: float) -> float:
    """Our val curves against a peer's, job by job and epoch by epoch."""
    mine = [value for curve in curves for value in curve]
    return require_equal(what, mine, [value for curve in account["val_nll"] for value in curve], tolerance)
