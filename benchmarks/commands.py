"""How long a user waits for an answer: help, an error, a plan of 100 jobs, a finished sweep asked again.

    python benchmarks/commands.py            # writes benchmarks/results/commands.json

Each command runs as a process of its own, as from a shell; the figure is the median wall-clock time. A bare
``python -c pass`` stands beside them as the floor of any command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tl_experiments.config.compose import conf_dir
from tl_experiments.sweeps.costs import CostBook, Price
from tl_experiments.sweeps.expand import compose_jobs, expand
from tl_experiments.sweeps.jobs import make_job
from tl_experiments.sweeps.planner import make_plan, table, unpriced
from tl_experiments.sweeps.tasks import make_tasks
from tl_experiments.training.preflight import check_data

RESULTS = Path(__file__).parent / "results" / "commands.json"
TL = [sys.executable, "-m", "tl_experiments"]
TINY = [
    "backbone=test_resnet", "backbone.preprocessing.image_size=32", "backbone.weights=random", "dataset.shots=1",
    "trainer.max_epochs=1", "trainer.accelerator=cpu",
]  # fmt: skip
ARMS = ["freeze_strategy=feature_extraction,last_n_blocks,full,from_scratch", "freeze_strategy.n=1,2"]
COMMANDS = {  # name: (arguments, most seconds that we want it to take)
    "tl --help": (["--help"], 0.3),
    "tl train --help": (["train", "--help"], 0.8),
    "tl list backbones 'vit*'": (["list", "backbones", "vit*"], 0.5),
    "an unknown key": (["train", "trainer.max_epoch=3"], 0.5),
    "an unknown choice": (["train", "freeze_strategy=ful"], 0.5),
    "a value out of range": (["train", "optimizer.lr=-1"], 0.5),
    "a misspelt backbone": (["train", "backbone.name=resnet_18"], 0.5),
}


def seconds(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median, least and most of ``repeats`` calls, after one that is not counted."""
    times = []
    for number in range(repeats + 1):
        started = time.perf_counter()
        call()
        if number:
            times.append(time.perf_counter() - started)
    return {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times)}


def process(command: list[str], folder: str) -> Callable[[], object]:
    return lambda: subprocess.run(command, cwd=folder, capture_output=True)


def plan(book: CostBook) -> None:
    """100 jobs over 2 backbones and 4 strategies: composed, checked, hashed, grouped, priced."""
    arguments = ["backbone=resnet18,vit_small", *ARMS, "seed=range(10)", "dataset.shots=20"]
    loader = GlobalHydra.instance().config_loader()
    jobs = [make_job(*one) for one in compose_jobs(loader, "train", [], expand(loader, {}, arguments))]
    assert len({job.id for job in jobs}) == 100
    datasets = check_data(job.config for job in jobs)
    tasks = make_tasks(jobs, jobs, [])
    for config in unpriced(tasks, book):  # the first time
        book.learn(config, Price(train_s=0.01, encode_s=0.01, row_bytes=4096, image_size=224))
    made = make_plan(tasks, datasets, book, at_once=2)
    assert made.total.seconds is not None
    table(made)


def main() -> None:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        rows["python -c pass (floor)"] = seconds(process([sys.executable, "-c", "pass"], folder), repeats)
        for name, (arguments, limit) in COMMANDS.items():
            rows[name] = {**seconds(process([*TL, *arguments], folder), repeats), "limit_s": limit}
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            book = CostBook(Path(folder) / "costs.json", "cpu", 1)
            rows["plan of 100 jobs"] = {**seconds(lambda: plan(book), repeats), "limit_s": 1.0}
        sweep = [*TL, "train", "-m", *TINY, *ARMS, "seed=range(20)", "name=hundred"]
        subprocess.run(sweep, cwd=folder, check=True, capture_output=True)
        assert len(list(Path(folder).glob("outputs/hundred/*/record.json"))) == 100
        rows["a finished sweep of 100 jobs again"] = {**seconds(process(sweep, folder), repeats), "limit_s": 2.0}
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    versions = {name: version(name) for name in ("hydra-core", "omegaconf", "timm", "torch")}
    result = {"command": "python benchmarks/commands.py", "machine": machine, "versions": versions, "results": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    for name, row in rows.items():
        limit = f"limit {row['limit_s']:.1f}" if "limit_s" in row else ""
        sys.stdout.write(f"{name:<36} {row['median_s']:.3f} s  ({row['min_s']:.3f} to {row['max_s']:.3f})  {limit}\n")


if __name__ == "__main__":
    main()
