"""``compare``: from the folders of sweeps to the comparison on disk; what is already compared is only read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_experiments.analysis.arms import Arm
from tl_experiments.analysis.folders import Found, find
from tl_experiments.analysis.results import Comparison
from tl_experiments.errors import UserError
from tl_experiments.records import remove_stale_temporaries, write_atomically

if TYPE_CHECKING:
    from tl_experiments.analysis.runs import FinishedRun

COMPARISON_FOLDER = "comparison"
COMPARISON_FILE = "comparison.json"
TABLES = ("table.csv", "table.md", "table.tex", "contrasts.csv", "datasets.csv", "per_class.csv")


@dataclass(frozen=True)
class Evidence:
    """A comparison with the runs that it rests on, for who wants to show more than its numbers.

    Args:
        comparison: What ``compare`` returns.
        runs: Arm -> the runs of its chosen trial, in order of seed, fold and split.
        costs: What the commands of the sweeps cost, predicted and actual, as their ``sweep.json`` has it.
    """

    comparison: Comparison
    runs: Mapping[Arm, tuple[FinishedRun, ...]]
    costs: tuple[Mapping[str, Any], ...]


def compare(*folders: Path | str) -> Comparison:
    """Compare the finished jobs of one or several sweeps and write ``comparison/`` into the first folder.

    Where nothing changed since the last time, the stored comparison is read back and no statistic is computed.

    Args:
        folders: Folders of sweeps, or of single jobs.

    Raises:
        UserError: A folder holds no record, its ``sweep.json`` is damaged, or a metric of a record is not what the
            stored predictions give.
    """
    return _compared(*_found(folders))


def evidence(*folders: Path | str) -> Evidence:
    """``compare``, and the runs behind it; their predictions and curves are read when they are asked for.

    Args:
        folders: As of ``compare``.

    Raises:
        UserError: As of ``compare``.
    """
    from tl_experiments.analysis.comparison import chosen_runs
    from tl_experiments.analysis.runs import load

    found, target = _found(folders)
    comparison = _compared(found, target)
    runs, _ = load(found)
    return Evidence(comparison, chosen_runs(runs), found.costs)


def _found(folders: tuple[Path | str, ...]) -> tuple[Found, Path]:
    if not folders:
        raise UserError("compare", "0 folders, expected 1 or more", "give the folder of a sweep, outputs/<name>")
    # Twice the same folder is once: its runs must not count as more evidence.
    paths = list(dict.fromkeys(Path(folder) for folder in folders))
    return find(paths), paths[0] / COMPARISON_FOLDER


def _compared(found: Found, target: Path) -> Comparison:
    stored = _stored(target, found.key)
    return stored if stored is not None else _compute(found, target)


def _compute(found: Found, target: Path) -> Comparison:
    from tl_experiments.analysis.comparison import chosen_runs, compare_records, not_finite
    from tl_experiments.analysis.latex import table_latex
    from tl_experiments.analysis.runs import load
    from tl_experiments.analysis.statistics_tables import contrasts_csv, overview_csv, per_class_csv
    from tl_experiments.analysis.tables import table_csv, table_markdown
    from tl_experiments.analysis.verification import class_tables, verify

    runs, lost = load(found)
    if lost and not runs and all(job["state"] == "debug" for job in lost):
        raise UserError(str(target.parent), "only debug runs, whose numbers are no result", "run without debug=")
    verified = verify([run for run in runs if not not_finite(run.record)])
    records = [run.record for run in runs]
    comparison = compare_records(records, lost, hits=verified.hits, unverified=verified.unverified)
    comparison = replace(comparison, key=found.key)
    # The JSON comes last: where it stands, the tables of the same key stand too.
    remove_stale_temporaries(target)
    texts = (
        *(table_csv(comparison), table_markdown(comparison), table_latex(comparison)),
        *(contrasts_csv(comparison.contrasts), overview_csv(comparison.overview)),
        per_class_csv(class_tables(chosen_runs(runs), verified)),
    )
    for name, text in zip(TABLES, texts, strict=True):
        write_atomically(target / name, text)
    write_atomically(target / COMPARISON_FILE, comparison.to_json())
    return comparison


def _stored(target: Path, key: str) -> Comparison | None:
    if not all((target / name).is_file() for name in TABLES):
        return None
    try:
        stored = Comparison.from_json((target / COMPARISON_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing, damaged, edited or of another version: it is made anew
    return stored if stored.key == key else None
