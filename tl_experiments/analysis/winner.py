"""The run of a sweep that one would use: chosen on val alone, arm, trial and seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tl_experiments.analysis.arms import group_arms, val_rank
from tl_experiments.analysis.comparison import arm_names
from tl_experiments.analysis.folders import find, load
from tl_experiments.errors import UserError
from tl_experiments.records import RunRecord


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
    """The run that val chose in a sweep: of the recommended arm the chosen trial, and of that the best seed.

    Args:
        folder: Of the sweep.
        seed: Of the run; null takes the one with the best val accuracy, at a tie the lowest val NLL.

    Raises:
        UserError: The sweep has no usable run, none of that seed, or several datasets.
    """
    found = find([folder])
    records, _ = load(found)
    usable = [record for record in records if all(map(math.isfinite, record.metrics["val"].values()))]
    if not usable:
        raise UserError(str(folder), "no run with finite numbers", "run the sweep again, or name the folder of a run")
    arms = group_arms(usable)
    datasets = list(dict.fromkeys(arm.arm.dataset for arm in arms))
    if len(datasets) > 1:
        what = f"a sweep over {len(datasets)} datasets ({', '.join(datasets)}), expected one"
        raise UserError(str(folder), what, "name the folder of one of its runs")
    best = arms[0]
    runs = sorted(best.runs, key=lambda run: (*val_rank([run]), run.seed))
    chosen = next((run for run in runs if seed in (None, run.seed)), None)
    name = arm_names([arm.arm for arm in arms])[best.arm]
    if chosen is None:
        seeds = ", ".join(str(run.seed) for run in best.runs)
        raise UserError("--seed", f"{name}, which val chose, has no run of seed {seed}", f"it has {seeds}")
    val = chosen.metrics["val"]["accuracy"]
    of = f"of {len(arms)} arms " if len(arms) > 1 else ""
    how = "" if seed is not None or len(runs) == 1 else f", the best of {len(runs)} on val"
    reason = f"{name} {of}by val, seed {chosen.seed}{how} (val accuracy {val:.4f})"
    return Winner(_folder_of(chosen, tuple(found.records)), reason)


def _folder_of(record: RunRecord, folders: tuple[Path, ...]) -> Path:
    by_name = [folder for folder in folders if folder.name == record.job_id]
    return by_name[0] if by_name else next(one for one in folders if RunRecord.read(one).job_id == record.job_id)
