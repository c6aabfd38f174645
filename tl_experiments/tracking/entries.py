"""What is entered of a run: the same keys and values in every tracker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from tl_experiments.records import write_atomically
from tl_experiments.safe_text import plain, redacted, redacted_text
from tl_experiments.tracking.runs import Run

_NAME_LIMIT = 128  # W&B's; MLflow and file systems allow more
_OF_THE_RECORD = (
    *("best_step", "trained_parameters", "total_parameters", "still_rising"),
    *("wall_clock_s", "pretraining_s", "peak_memory_bytes"),
)
ARM = ("dataset", "backbone", "head", "freeze_strategy")


def run_name(run: Run) -> str:
    """For people, for example ``resnet18 last_n_blocks(n=2) lr 0.001 seed 0``; runs of a sweep may share one."""
    arm = run.facts["arm"]
    text = f"{arm['backbone']} {arm['freeze_strategy']} lr {run.facts['learning_rate']:.3g} seed {run.facts['seed']}"
    return short(text, _NAME_LIMIT)


def folder_name(run: Run) -> str:
    """The name of a run as one folder's: safe on every disk, and no other run's."""
    return f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', run_name(run)).strip('._')[:80]}-{run.id}"


def short(text: str, limit: int) -> str:
    """One line of at most ``limit`` characters without control codes."""
    safe = plain(text)
    return safe if len(safe) <= limit else safe[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def cause(run: Run) -> str | None:
    """Why the run did not end well."""
    return None if run.cause is None else short(redacted_text(run.cause), 500)


def config(run: Run) -> dict[str, Any]:
    """The whole config, what is compared (``arm``) and the base learning rate, without secrets."""
    facts = run.facts
    return redacted({**facts["config"], "arm": dict(facts["arm"]), "learning_rate": facts["learning_rate"]})


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return found


def new_points(run: Run, after: int) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, values) of each validation after step ``after``, under the keys of ``metrics.jsonl``."""
    for values in run.curve:
        if values["step"] > after:
            yield values["step"], {key: value for key, value in values.items() if value is not None}


def split_key(split: str) -> str:
    """A split in keys: ``test/<name>`` keeps its slash, and of the name letters, digits and ``_ . -``."""
    first, slash, name = split.partition("/")
    return f"{first}{slash}{re.sub(r'[^A-Za-z0-9_.-]+', '_', short(redacted_text(name), 64)).strip('.')}"


def summary(run: Run) -> dict[str, float]:
    """The numbers of a finished run and its costs.

    ``test_accuracy``, ``test/<name>_accuracy`` of further test sets, ``best_val_accuracy`` of the weights kept, ...
    """
    if run.record is None:
        return {}
    prefix = {"val": "best_val"}
    metrics = {
        f"{prefix.get(split) or split_key(split)}_{name}": value
        for split, values in run.record.metrics.items()
        for name, value in values.items()
    }
    return {**metrics, **{name: getattr(run.record, name) for name in _OF_THE_RECORD}}


@dataclass(frozen=True, kw_only=True)
class Entered:
    """What a tracker holds of a run, remembered beside the run so that the same command enters only what is missing.

    Args:
        state: In which the run was completed there; None while it is not.
        step: Last step entered.
        id: The tracker's own name of the run, where it gives one.
        offline: Whether it is there in files only, which somebody has to upload.
    """

    state: str | None = None
    step: int = -1
    id: str | None = None
    offline: bool = False

    @classmethod
    def read(cls, run: Run, tracker: str) -> Entered:
        """What ``tracker`` holds of ``run``: nothing, unless its file says so."""
        try:
            content = json.loads((run.folder / f"{tracker}.json").read_text(encoding="utf-8"))
            return cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, run: Run, tracker: str) -> None:
        """Remember it in ``<run>/<tracker>.json``."""
        write_atomically(run.folder / f"{tracker}.json", json.dumps(asdict(self)) + "\n")

    @staticmethod
    def forget(run: Run, tracker: str) -> None:
        """From now on ``tracker`` holds nothing of ``run``."""
        (run.folder / f"{tracker}.json").unlink(missing_ok=True)

    @property
    def known(self) -> bool:
        """Whether anything is there."""
        return self != Entered()

    def completes(self, run: Run) -> bool:
        """Whether nothing of the run is missing."""
        return run.ended and self.state == run.state
