"""The command line that makes the runs of an arm again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from math import prod

from tl_experiments.analysis.runs import FinishedRun


def commands(runs: Sequence[FinishedRun]) -> tuple[str, ...]:
    """As few commands as can be: one where the runs are all combinations of their values, else one a run.

    Empty where no ``sweep.json`` tells what a run was asked for.
    """
    known = [run.overrides for run in runs if run.overrides]
    values: dict[str, dict[str, None]] = {}  # key -> what stands after it, in order
    for overrides in known:
        for override in overrides:
            key, _, value = override.partition("=")
            values.setdefault(key, {})[value] = None
    if not known:
        return ()
    if any(len(overrides) != len(values) for overrides in known) or prod(map(len, values.values())) != len(known):
        return tuple(dict.fromkeys(_line(overrides) for overrides in known))
    return (_line([f"{key}={','.join(found)}" for key, found in values.items()]),)


def _line(overrides: Sequence[str]) -> str:
    return shlex.join(["tl", "train", "-m", *overrides])
