"""The run of a sweep that one would use: arm, trial, and which of its runs, all chosen on val."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tl_experiments.analysis.arms import val_rank
from tl_experiments.analysis.comparison import arm_names, chosen_runs
from tl_experiments.analysis.folders import find
from tl_experiments.analysis.runs import load
from tl_experiments.errors import UserError


@dataclass(frozen=True)
class Winner:
    """A run and why it is this one.

    Args:
        folder: Of the run.
        reason: In half a sentence.
    """

    folder: Path
    reason: str


def winner(folder: Path, seed: int | None = None) -> Winner:
    """The run that val chose in a sweep: of the recommended arm the chosen trial, and of that the best run.

    Args:
        folder: Of the sweep.
        seed: Of the run; null takes the one with the best val accuracy, at a tie the lowest val NLL.

    Raises:
        UserError: The sweep has no usable run, none of that seed, or several datasets.
    """
    runs, _ = load(find([folder]))
    by_arm = chosen_runs(runs)  # best on val first
    if not by_arm:
        raise UserError(str(folder), "no usable run", "run the sweep again, or name the folder of a run")
    datasets = list(dict.fromkeys(arm.dataset for arm in by_arm))
    if len(datasets) > 1:
        what = f"a sweep over {len(datasets)} datasets ({', '.join(datasets)}), expected one"
        raise UserError(str(folder), what, "name the folder of one of its runs")
    best, candidates = next(iter(by_arm.items()))
    name = arm_names(list(by_arm))[best]
    allowed = [run for run in candidates if seed is None or run.record.seed == seed]
    if not allowed:
        seeds = ", ".join(str(run.record.seed) for run in candidates)
        raise UserError("--seed", f"{name}, which val chose, has no run of seed {seed}", f"choose one of {seeds}")
    chosen = min(allowed, key=lambda run: (*val_rank([run.record]), run.record.seed, run.record.job_id))
    of_arms = f" of {len(by_arm)} arms by val" if len(by_arm) > 1 else ""
    of_runs = f", the best of {len(allowed)} on val" if len(allowed) > 1 else ""
    val = chosen.record.metrics["val"]["accuracy"]
    return Winner(chosen.folder, f"{name}{of_arms}, seed {chosen.record.seed}{of_runs} (val accuracy {val:.4f})")
