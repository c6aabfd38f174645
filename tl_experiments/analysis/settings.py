"""Which settings tell the trials apart, under the shortest names that are not ambiguous."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tl_experiments.analysis.arms import Arm, ArmRuns

# The row's own labels speak for these groups, unless one of their keys varies within an arm.
_LABELLED = ("backbone.", "head.", "dataset.", "freeze_strategy.")
_ABSENT = ""


def chosen_settings(arms: Sequence[ArmRuns]) -> dict[Arm, dict[str, str]]:
    """Arm -> the chosen trial's settings, those only that differ between trials; ``{"lr_factor": "3"}``."""
    shown = {
        key for key in _varying([trial for arm in arms for trial in _settings(arm)]) if not key.startswith(_LABELLED)
    }
    keys = {arm.arm: sorted(shown | _varying(_settings(arm))) for arm in arms}
    names = short_names({key for each in keys.values() for key in each})
    chosen = {}
    for arm in arms:
        settings: dict[str, str] = json.loads(arm.chosen)
        # timm's optimizers are one choice of config; their name says which
        if settings.get("optimizer.name") == '"timm"':
            settings["optimizer.name"] = settings["optimizer.algorithm"]
        chosen[arm.arm] = {names[key]: _readable(settings[key]) for key in keys[arm.arm] if key in settings}
    return chosen


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Dotted key -> its last part, its group where that is ``name``, or the whole key where two would be equal."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        group, _, leaf = key.rpartition(".")
        by_name[group if leaf == "name" and group else leaf].append(key)
    return {key: name if len(same) == 1 else key for name, same in by_name.items() for key in same}


def _settings(arm: ArmRuns) -> list[dict[str, str]]:
    return [json.loads(key) for key in arm.trials]


def _varying(trials: Sequence[Mapping[str, str]]) -> set[str]:
    """Keys with several values; that another choice of its group lacks an option is no value of it."""
    varying = set()
    for key in {key for trial in trials for key in trial}:
        name = f"{key.rpartition('.')[0]}.name"
        choices = {trial.get(name) for trial in trials if key in trial}
        if len({trial.get(key, _ABSENT) for trial in trials if trial.get(name) in choices}) > 1:
            varying.add(key)
    return varying


def _readable(value: str) -> str:
    parsed = json.loads(value)
    return parsed if isinstance(parsed, str) else value
