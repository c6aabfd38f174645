"""The comparison as files: CSV for programs, Markdown for people. Names in cells can do no harm in either."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from tl_experiments.analysis.columns import caption, explanation, full_columns, job_name
from tl_experiments.analysis.results import Comparison, Row
from tl_experiments.analysis.wording import seconds
from tl_experiments.safe_text import csv_text, plain

_MARKDOWN = re.compile(r"[\\`*\[\]|~$!#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, inside a table cell too."""
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", plain(text).translate(_HTML))


def table_csv(comparison: Comparison) -> str:
    """Every column at full precision, one row an arm; empty where there is no value."""
    stream = io.StringIO()
    rows = [_csv_row(row) for row in comparison.rows]
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _csv_row(row: Row) -> dict[str, object]:
    test, gain = row.test_accuracy, row.transfer_gain
    return {
        "dataset": csv_text(row.arm.dataset),
        "backbone": csv_text(row.arm.backbone),
        "head": csv_text(row.arm.head),
        "freeze_strategy": csv_text(row.arm.freeze_strategy),
        "recommended": str(row.recommended).lower(),
        "settings": csv_text(" ".join(f"{key}={value}" for key, value in row.settings.items())),
        "trials": row.trials,
        "max_epochs": row.max_epochs,
        "seeds": len(row.seeds),
        "val_accuracy": row.val_accuracy,
        "test_accuracy": test.mean,
        "test_accuracy_sd": test.sd,
        "test_accuracy_low": test.low,
        "test_accuracy_high": test.high,
        "test_macro_f1": row.test_macro_f1,
        "test_nll": row.test_nll,
        "transfer_gain": None if gain is None else gain.mean,
        "transfer_gain_low": None if gain is None else gain.low,
        "transfer_gain_high": None if gain is None else gain.high,
        "transfer_gain_seeds": None if gain is None else gain.n,
        "negative_transfer": str(row.negative_transfer).lower(),
        "p_value": row.p_value,
        "trained_parameters": row.trained_parameters,
        "total_parameters": row.total_parameters,
        "wall_clock_s": row.wall_clock_s,
        "all_trials_s": row.all_trials_s,
        "pretraining_s": row.pretraining_s,
        "peak_memory_bytes": row.peak_memory_bytes,
        "labels_spent": row.labels_spent,
    }


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


def _seconds(value: float | None) -> str:
    return "" if value is None else seconds(value)


def _table(titles: Sequence[str], rules: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rules, *rows))


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)
