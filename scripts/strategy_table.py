"""Every freeze strategy on one image folder, its rate tuned on val with one seed, then run with several.

    python scripts/strategy_table.py flowers5 $DATA/flowers5 $WEIGHTS --image-size 128

Two rounds of `tl train -m` into one sweep: all arms at each factor of their strategy's rate with the first seed; then
each with the factor that val chose and all seeds. `tl compare` takes the trial with the most seeds, so its table holds
the tuned arms. What it writes is copied to docs/results/.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tl_experiments.analysis.arms import val_rank
from tl_experiments.records import RECORD_FILE, RunRecord

OPTIONS = {
    "feature_extraction": [],
    "last_n_blocks": ["freeze_strategy.n=2,6"],
    "full": [],
    "from_scratch": [],
    "discriminative": [],
    "gradual_unfreezing": [],
    "lp_ft": [],
    "surgical": ["freeze_strategy.blocks=[first],[middle],[last]"],
    "bitfit": [],
    "norm_only": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("root")
    parser.add_argument("weights")
    parser.add_argument("--backbone", default="mobilenetv2_tf")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--factors", default="0.3,1,3")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--strategies", default=",".join(OPTIONS))
    given = parser.parse_args()
    common = [
        f"name={given.name}", "dataset=image_folder", f"dataset.root={given.root}",
        f"backbone={given.backbone}", f"backbone.weights={given.weights}",
        f"backbone.preprocessing.image_size={given.image_size}", f"trainer.max_epochs={given.epochs}",
    ]  # fmt: skip
    strategies = given.strategies.split(",")
    first = given.seeds.split(",")[0]
    options = [option for name in strategies for option in OPTIONS[name]]
    arms = [f"freeze_strategy={','.join(strategies)}", *options, f"optimizer.lr_factor={given.factors}"]
    train([*common, *arms, f"seed={first}"])
    folder = Path("outputs", given.name)
    for run in tuned(folder, int(first)):
        train([*common, *own_options(run), f"seed={given.seeds}"])
    subprocess.run(["tl", "compare", str(folder)], check=True)
    results = Path(__file__).parents[1] / "docs" / "results"
    shutil.copy(folder / "comparison" / "table.csv", results / f"strategies_{given.name}.csv")


def train(overrides: Sequence[str]) -> None:
    """One sweep."""
    command = ["tl", "train", "-m", *overrides]
    sys.stderr.write(f"\n$ {shlex.join(command)}\n")
    subprocess.run(command, check=True)


def tuned(folder: Path, seed: int) -> list[RunRecord]:
    """The run of each arm, among those of one seed, whose factor val prefers."""
    runs = [RunRecord.read(path.parent) for path in sorted(folder.glob(f"*/{RECORD_FILE}"))]
    trials: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        if run.seed == seed:
            trials[run.arm["freeze_strategy"]].append(run)
    return [min(own, key=lambda run: val_rank([run])) for own in trials.values()]


def own_options(run: RunRecord) -> list[str]:
    """The overrides that make the arm of a run, and its factor."""
    strategy = run.config["freeze_strategy"]
    overrides = [f"freeze_strategy={strategy['name']}", f"optimizer.lr_factor={run.config['optimizer']['lr_factor']:g}"]
    if "n" in strategy:
        overrides.append(f"freeze_strategy.n={strategy['n']}")
    if "blocks" in strategy:
        overrides.append(f"freeze_strategy.blocks=[{','.join(strategy['blocks'])}]")
    return overrides


if __name__ == "__main__":
    main()
