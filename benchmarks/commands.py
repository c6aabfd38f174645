"""How long a user waits for an answer: help, an error (bar d1), a plan of 100 jobs (e3), a finished sweep again (f4).

    python benchmarks/commands.py    # about 2 minutes

Each command runs as a process of its own, as from a shell; the figure is the median wall-clock time. A bare
``python -c pass`` stands beside them as the floor of any command.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from measure import Report, Row, Times, arguments, seconds, spread
from tl_experiments.config.compose import conf_dir
from tl_experiments.sweeps.costs import CostBook, Price
from tl_experiments.sweeps.expand import compose_jobs, expand
from tl_experiments.sweeps.jobs import make_job
from tl_experiments.sweeps.planner import make_plan, table, unpriced
from tl_experiments.sweeps.tasks import make_tasks
from tl_experiments.training.preflight import check_data

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


def repeated(call: Callable[[], object], repeats: int) -> Times:
    """Seconds of each of ``repeats`` calls, after one that is not counted."""
    call()
    return [seconds(call) for _ in range(repeats)]


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
    """Measure and write."""
    given = arguments(__doc__, repeats=7).parse_args()
    repeats = 3 if given.short else given.repeats
    report = Report("commands", given.short)

    def enter(bar: str, name: str, call: Callable[[], object], limit: float | None) -> None:
        times = repeated(call, repeats)
        report.details[name] = times
        report.add(
            Row(
                bar=bar,
                what=name,
                peer="the clock",
                **spread(times),
                sense="<=",
                target=limit,
                unit="s",
                limit="python -c pass",
            )
        )

    with tempfile.TemporaryDirectory() as folder:
        enter("", "python -c pass", process([sys.executable, "-c", "pass"], folder), None)
        for name, (options, limit) in COMMANDS.items():
            enter("d1", name, process([*TL, *options], folder), limit)
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            book = CostBook(Path(folder) / "costs.json", "cpu", 1)
            enter("e3", "plan of 100 jobs", lambda: plan(book), 1.0)
        sweep = [*TL, "train", "-m", *TINY, *ARMS, "seed=range(20)", "name=hundred"]
        subprocess.run(sweep, cwd=folder, check=True, capture_output=True)
        assert len(list(Path(folder).glob("outputs/hundred/*/record.json"))) == 100
        enter("f4", "a finished sweep of 100 jobs again", process(sweep, folder), 2.0)
    report.write()


if __name__ == "__main__":
    main()
