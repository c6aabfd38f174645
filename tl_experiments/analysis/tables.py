"""The comparison as files: CSV for programs, Markdown for people. Names in cells can do no harm in either."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from tl_experiments.analysis.arms import differs
from tl_experiments.analysis.columns import caption, explanation, full_columns, job_name
from tl_experiments.analysis.findings import Overview
from tl_experiments.analysis.results import Comparison, Row
from tl_experiments.analysis.wording import p_sign, p_text, plural, seconds, share, span
from tl_experiments.safe_text import csv_text, plain

_MARKDOWN = re.compile(r"[\\`*\[\]|~$!#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, inside a table cell too."""
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", plain(text).translate(_HTML))


def table_csv(comparison: Comparison) -> str:
    """Every column at full precision, one row an arm; empty where there is no value."""
    stream = io.StringIO()
    columns = _further_metrics(comparison.rows)
    rows = [_csv_row(row, columns) for row in comparison.rows]
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _csv_row(row: Row, columns: Sequence[tuple[str, str]]) -> dict[str, object]:
    test, gain = row.test_accuracy, row.transfer_gain
    return {
        "dataset": csv_text(row.arm.dataset),
        "backbone": csv_text(row.arm.backbone),
        "head": csv_text(row.arm.head),
        "freeze_strategy": csv_text(row.arm.freeze_strategy),
        "recommended": str(row.recommended).lower(),
        "settings": csv_text(" ".join(f"{key}={value}" for key, value in row.settings.items())),
        "trials": row.trials,
        "runs": row.runs,
        "max_epochs": row.max_epochs,
        "all_trials_epochs": row.all_trials_epochs,
        "seeds": len(row.seeds),
        "splits": row.splits,
        "unequal_budget": " ".join(row.unequal),
        "val_accuracy": row.val_accuracy,
        "test_accuracy": test.mean,
        "test_accuracy_sd": test.sd,
        "test_accuracy_low": test.low,
        "test_accuracy_high": test.high,
        "test_accuracy_low_bootstrap": test.bootstrap_low,
        "test_accuracy_high_bootstrap": test.bootstrap_high,
        "test_macro_f1": row.test_macro_f1,
        "test_nll": row.test_nll,
        **_further(row, columns),
        "transfer_gain": None if gain is None else gain.mean,
        "transfer_gain_low": None if gain is None else gain.low,
        "transfer_gain_high": None if gain is None else gain.high,
        "transfer_gain_seeds": None if gain is None else gain.n,
        "transfer_gain_p_holm": row.transfer_gain_p,
        "negative_transfer": str(row.negative_transfer).lower(),
        "p_value": row.p_value,
        "trained_parameters": row.trained_parameters,
        "total_parameters": row.total_parameters,
        "wall_clock_s": row.wall_clock_s,
        "all_trials_s": row.all_trials_s,
        "pretraining_s": row.pretraining_s,
        "peak_memory_bytes": row.peak_memory_bytes,
        "labels_spent": row.labels_spent,
        "not_dominated": " ".join(row.not_dominated),
    }


def _further_metrics(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Split and metric of what has no column of its own: calibration and the like, all of the further test sets."""
    found = {(split, name) for row in rows for split, metrics in row.metrics.items() for name in metrics}
    return sorted(
        (split, name)
        for split, name in found
        if split != "val" and (split != "test" or name not in ("accuracy", "macro_f1", "nll"))
    )


def _further(row: Row, columns: Sequence[tuple[str, str]]) -> dict[str, object]:
    cells: dict[str, object] = {}
    for split, name in columns:
        estimate = row.metrics.get(split, {}).get(name)
        column = csv_text(f"{split}_{name}")
        cells[column] = None if estimate is None else estimate.mean
        if name == "accuracy":
            cells |= {
                f"{column}_sd": None if estimate is None else estimate.sd,
                f"{column}_low": None if estimate is None else estimate.low,
                f"{column}_high": None if estimate is None else estimate.high,
            }
    return cells


def table_markdown(comparison: Comparison) -> str:
    """Verdict, table, caption, warnings, notes and the jobs that are in no mean, as GitHub Markdown."""
    columns = full_columns(comparison.rows)
    cells = [[markdown_text(column.cell(row)) for column in columns] for row in comparison.rows]
    parts = [
        "# Comparison",
        *(markdown_text(verdict.sentence) for verdict in comparison.verdicts),
        _table([column.title for column in columns], ["--:" if c.number else ":--" for c in columns], cells),
        markdown_text(caption(comparison.rows)),
        _bullets(explanation(comparison.rows)),
    ]
    if comparison.overview is not None:
        parts += ["## Over all datasets", *_over_datasets(comparison.overview)]
    if comparison.warnings:
        parts += ["## Read with care", _bullets(comparison.warnings)]
    if comparison.notes:
        parts += ["## Notes", _bullets(comparison.notes)]
    if comparison.lost_jobs:
        lost = [
            [
                markdown_text(text)
                for text in (job_name(job), job.state, job.cause, job.log or "", _seconds(job.seconds))
            ]
            for job in comparison.lost_jobs
        ]
        header = ["job", "state", "cause", "log", "time"]
        parts += ["## Jobs not in the table", _table(header, [":--"] * 4 + ["--:"], lost)]
    return "\n\n".join(parts) + "\n"


def _over_datasets(overview: Overview) -> tuple[str, str]:
    arms = [each.arm for each in overview.standings]
    labels = [name for name in ("backbone", "head") if differs(arms, name)] + ["freeze_strategy"]
    titles = [*labels, "average rank", "interquartile mean", "p"]
    cells = [
        [
            *(markdown_text(getattr(each.arm, label)) for label in labels),
            f"{each.average_rank:.2f}",
            f"{share(each.interquartile_mean)} {span(each.low, each.high)}".rstrip(),
            "" if each.wilcoxon_p is None else p_sign(each.wilcoxon_p).removeprefix("="),
        ]
        for each in overview.standings
    ]
    rules = [":--"] * len(labels) + ["--:"] * 3
    found = overview.friedman
    said = [
        f"rank: by test accuracy on {plural(len(overview.datasets), 'dataset')}, 1 the best; two average ranks differ "
        f"at 5% if they are {overview.critical_difference:.2f} apart (Nemenyi)",
        "interquartile mean: of the test accuracy of all runs, with its 95% bootstrap interval over the runs of each "
        "dataset",
        "p: of the first arm against this one: Wilcoxon signed-rank test over datasets, two-sided, Holm over "
        "all pairs of arms",
    ]
    if found is not None:
        said.append(f"Friedman's test over all arms: {p_text(found.p_value)}; {p_text(found.iman_davenport_p)} by F")
    return _table(titles, rules, cells), _bullets(said)


def _seconds(value: float | None) -> str:
    return "" if value is None else seconds(value)


def _table(titles: Sequence[str], rules: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rules, *rows))


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)
