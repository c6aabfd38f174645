"""The comparison on a terminal, made for 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tl_experiments.analysis.columns import Column, caption, compact_columns, explanation, job_name
from tl_experiments.analysis.results import Comparison, Row
from tl_experiments.analysis.wording import short
from tl_experiments.safe_text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

LABEL_LIMIT = 40  # longer names are cut: table.md and comparison.json hold them whole
SENTENCE_LIMIT = 2000  # of a verdict over many arms or with absurd names
LOST_JOBS_SHOWN = 8
_GAP = 2
_ASCII = str.maketrans({"±": "+/-", "\N{MINUS SIGN}": "-", "—": "-", "…": "~", "·": "|"})


def show(comparison: Comparison, console: Console) -> None:
    """Print table, verdict, warnings, notes and lost jobs.

    Args:
        comparison: What to print.
        console: Where to; its width and encoding are kept to.
    """
    left_out: list[str] = []
    # A table a dataset: its rows are compared with each other only, and its name needs no column.
    for _, group in groupby(comparison.rows, key=lambda row: row.arm.dataset):
        rows = list(group)
        columns = compact_columns(rows)
        fitting = _fitting(columns, rows, console.width)
        left_out += [column.title for column in columns if column not in fitting]
        console.print(_text(short(caption(rows), SENTENCE_LIMIT), console, "bold"))
        console.print()
        console.print(_table(fitting, rows, console))
        console.print()
    for line in explanation(comparison.rows):
        console.print(_text(line, console, "dim"))
    if left_out:
        console.print(_text(f"in table.md: {', '.join(dict.fromkeys(left_out))}", console, "dim"))
    for verdict in comparison.verdicts:
        sentence = _text(short(verdict.sentence, SENTENCE_LIMIT), console)
        sentence.stylize("bold", 0, len("Verdict"))
        console.print()
        console.print(sentence)
    if comparison.warnings or comparison.notes or comparison.lost_jobs:
        console.print()
    for warning in comparison.warnings:
        console.print(_text(f"! {short(warning, SENTENCE_LIMIT)}", console, "yellow"))
    for job in comparison.lost_jobs[:LOST_JOBS_SHOWN]:
        line = f"{job.state}: {short(job_name(job), 2 * LABEL_LIMIT)}: {short(job.cause, 4 * LABEL_LIMIT)}"
        console.print(_text(f"- {line}", console))
    if len(comparison.lost_jobs) > LOST_JOBS_SHOWN:
        console.print(_text(f"- and {len(comparison.lost_jobs) - LOST_JOBS_SHOWN} more, in table.md", console))
    for note in comparison.notes:
        console.print(_text(f"note: {short(note, SENTENCE_LIMIT)}", console, "dim"))


def _fitting(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[Column]:
    """Leave optional columns out rather than wrap the names of the arms."""
    kept = list(columns)
    for column in sorted((column for column in columns if column.optional), key=lambda column: column.optional):
        if sum(_width(each, rows) for each in kept) + _GAP * (len(kept) - 1) <= width:
            break
        kept.remove(column)
    return kept


def _width(column: Column, rows: Sequence[Row]) -> int:
    return max(len(text) for text in (column.title, *(_cell(column, row) for row in rows)))


def _cell(column: Column, row: Row) -> str:
    return short(plain(column.cell(row)), LABEL_LIMIT)


def _table(columns: Sequence[Column], rows: Sequence[Row], console: Console) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            _text(column.title, console),
            justify="right" if column.number else "left",
            no_wrap=column.number,
            overflow="fold",
        )
    for row in rows:
        style = "bold green" if row.recommended else "red" if row.negative_transfer else ""
        table.add_row(*(_text(_cell(column, row), console, style) for column in columns))
    return table


def _text(text: str, console: Console, style: str = "") -> Text:
    """Text that is neither markup nor control code, in characters that the console's encoding has."""
    from rich.text import Text

    safe = plain(text)
    try:
        safe.encode(console.encoding)
    except UnicodeEncodeError:
        safe = safe.translate(_ASCII).encode(console.encoding, "replace").decode(console.encoding)
    return Text(safe, style=style)
