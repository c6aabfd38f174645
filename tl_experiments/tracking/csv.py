"""Two tidy tables in the sweep's folder, ``csv/metrics.csv`` and ``csv/runs.csv``, made anew when a run changes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tl_experiments.records import write_atomically
from tl_experiments.safe_text import csv_text
from tl_experiments.tracking.entries import ARM, cause, run_name, summary
from tl_experiments.tracking.runs import Run


class Csv:
    """A row a validation (``run``, ``step``, ...) and a row a run, those included that failed before they began."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "csv"
        self._runs: dict[str, Run] = {}
        self._changed = False

    def update(self, run: Run) -> None:
        self._runs[run.id] = run
        self._changed = True

    def flush(self) -> None:
        if self._changed:
            runs = [self._runs[name] for name in sorted(self._runs)]
            points = ({"run": run.id, **values} for run in runs for values in run.curve)
            write_atomically(self._folder / "metrics.csv", _table(points))
            write_atomically(self._folder / "runs.csv", _table(map(_row, runs)))
            self._changed = False

    def close(self) -> None:
        """Nothing is left to be done."""

    def missing(self) -> Iterator[str]:
        yield from ()


def _row(run: Run) -> dict[str, Any]:
    facts = run.facts
    known = {"name": run_name(run), **{key: facts["arm"][key] for key in ARM}} if facts else {}
    known |= {key: facts[key] for key in ("seed", "learning_rate") if key in facts}
    return {"run": run.id, "state": run.state, "cause": cause(run), **known, **summary(run)}


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows under the union of their keys, in the order in which they come up; what a row lacks is empty."""
    listed = list(rows)
    columns = list(dict.fromkeys(key for row in listed for key in row)) or ["run"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for row in listed:
        writer.writerow({key: csv_text(value) if isinstance(value, str) else value for key, value in row.items()})
    return stream.getvalue()
