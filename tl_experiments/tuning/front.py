"""The Pareto front of an arm's search, as text."""

from __future__ import annotations

from collections.abc import Sequence

from tl_experiments.safe_text import plain
from tl_experiments.tuning.space import SearchedArm
from tl_experiments.tuning.studies import Search


def front_lines(arm: SearchedArm, search: Search, objectives: Sequence[str]) -> list[str]:
    """A heading, then a line a trial of the front: what it reached, and its setting."""
    lines = [plain(f"Pareto front of {', '.join(arm.labels.values())}: val accuracy and seconds of its trials")]
    for trial in search.front():
        reached = dict(zip(objectives, trial.values, strict=True))
        setting = " ".join(search.setting(trial))
        lines.append(plain(f"  {reached['accuracy']:.4f}  {reached['seconds']:7.1f} s  {setting}"))
    return [*lines, ""]
