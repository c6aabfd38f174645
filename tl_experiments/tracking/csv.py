"""Tidy tables in the sweep's folder, ``csv/metrics.csv``, ``runs.csv`` and ``per_class.csv``, made anew on a change."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_experiments.records import write_atomically
from tl_experiments.tracking.entries import ARM, Entered, cause, run_name, split_key, summary
from tl_experiments.tracking.runs import Run
from tl_experiments.tracking.tables import as_csv, per_class


class Csv:
    """A row a validation (``run``, ``step``, ...), a row a run, those included that failed before they began, and a row
    a class of each split of a finished run."""

    whole = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "csv"
        self._rows: dict[str, _Rows] = {}
        self._changed = False

    def update(self, run: Run) -> None:
        self._rows[run.id] = _rows(run)
        self._changed = True

    def flush(self) -> None:
        if self._changed:
            of_runs = [self._rows[name] for name in sorted(self._rows)]
            write_atomically(self._folder / "metrics.csv", as_csv(row for rows in of_runs for row in rows.points))
            write_atomically(self._folder / "runs.csv", as_csv(rows.run for rows in of_runs))
            write_atomically(self._folder / "per_class.csv", as_csv(row for rows in of_runs for row in rows.classes))
            self._changed = False

    def close(self) -> None:
        """Nothing is left to be done."""

    def holds(self, run: Run) -> Entered:
        try:
            with (self._folder / "runs.csv").open(newline="", encoding="utf-8") as stream:
                states = {row["run"]: row["state"] for row in csv.DictReader(stream)}
        except (OSError, KeyError):
            return Entered()
        return Entered(state=states[run.id]) if run.id in states else Entered()

    def forget(self, run: Run) -> None:
        """The tables are made anew in any case."""

    def missing(self) -> Iterator[str]:
        yield from ()


@dataclass(frozen=True)
class _Rows:
    run: Mapping[str, Any]
    points: tuple[Mapping[str, Any], ...]
    classes: tuple[Mapping[str, Any], ...]


def _rows(run: Run) -> _Rows:
    classes = (
        {"run": run.id, "split": split_key(split), **row}
        for split, predictions in run.predictions().items()
        for row in per_class(predictions).records()
    )
    return _Rows(_row(run), tuple({"run": run.id, **values} for values in run.curve), tuple(classes))


def _row(run: Run) -> dict[str, Any]:
    facts = run.facts
    known = {"name": run_name(run), **{key: facts["arm"][key] for key in ARM}} if facts else {}
    known |= {key: facts[key] for key in ("seed", "learning_rate") if key in facts}
    return {"run": run.id, "state": run.state, "cause": cause(run), **known, **summary(run)}
