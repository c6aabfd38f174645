"""``compare``: from the folders of sweeps to the comparison on disk; what is already compared is only read back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
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
COMPARISONS_FOLDER = "comparisons"  # of several sweeps together
COMPARISON_FILE = "comparison.json"
_NAME_LENGTH = 60
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


def compare(*folders: Path | str, output: Path | str | None = None) -> Comparison:
    """Compare the finished jobs of one or several sweeps and write their comparison; see ``comparison_folder``.

    Where nothing changed since the last time, the stored comparison is read back and no statistic is computed.

    Args:
        folders: Folders of sweeps, or of single jobs.
        output: Folder to write to; None takes the usual one.

    Raises:
        UserError: A folder holds no record, its ``sweep.json`` is damaged, or a metric of a record is not what the
            stored predictions give.
    """
    return _compared(*_found(folders, output))


def evidence(*folders: Path | str, output: Path | str | None = None) -> Evidence:
    """``compare``, and the runs behind it; their predictions and curves are read when they are asked for.

    Args:
        folders: As of ``compare``.
        output: As of ``compare``.

    Raises:
        UserError: As of ``compare``.
    """
    from tl_experiments.analysis.comparison import chosen_runs
    from tl_experiments.analysis.runs import load

    found, target = _found(folders, output)
    comparison = _compared(found, target)
    runs, _ = load(found)
    return Evidence(comparison, chosen_runs(runs), found.costs)


def comparison_folder(folders: Sequence[Path | str], output: Path | str | None = None) -> Path:
    """Where a comparison is written: ``output``, or ``comparison/`` in the one folder.

    Several have ``comparisons/<names>-<hash of the set>`` beside the first, so that each keeps its own.

    Raises:
        UserError: There is no folder, or it is no path.
    """
    paths = _distinct(folders)
    if output is not None:
        return Path(output)
    if len(paths) == 1:
        return paths[0] / COMPARISON_FOLDER
    resolved = [path.resolve() for path in paths]
    names = re.sub(r"[^\w.=-]+", "_", "-".join(path.name for path in resolved))[:_NAME_LENGTH]
    digest = hashlib.sha256("\0".join(sorted(map(str, resolved))).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    parent = paths[0].parent if paths[0].name not in ("", "..") else resolved[0].parent
    return parent / COMPARISONS_FOLDER / f"{names}-{digest}"


def _distinct(folders: Sequence[Path | str]) -> list[Path]:
    """Twice the same folder is once: its runs must not count as more evidence."""
    if not folders:
        raise UserError("compare", "0 folders, expected 1 or more", "give the folder of a sweep, outputs/<name>")
    for folder in folders:
        if not isinstance(folder, (str, Path)):
            raise UserError("compare", f"got a {type(folder).__name__}, expected paths", "compare(*folders)")
    return list({Path(folder).resolve(): Path(folder) for folder in reversed(folders)}.values())[::-1]


def _found(folders: tuple[Path | str, ...], output: Path | str | None) -> tuple[Found, Path]:
    target = comparison_folder(folders, output)
    if target.exists() and not target.is_dir():
        raise UserError(str(target), "a file, expected a folder", "give another folder")
    return find(_distinct(folders)), target


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
        raise UserError(
            str(next(iter(found.records)).parent), "only debug runs, whose numbers are no result", "run without debug="
        )
    verified = verify([run for run in runs if not not_finite(run.record)])
    records = [run.record for run in runs]
    comparison = compare_records(
        records, lost, hits=verified.hits, unverified=verified.unverified, searches=found.searches
    )
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
