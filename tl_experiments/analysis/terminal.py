"""The comparison on a terminal, made for 100 columns."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from tl_experiments.analysis.columns import Column, caption, compact_columns, explanation, job_name
from tl_experiments.analysis.results import Comparison
from tl_experiments.analysis.wording import plain, short

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
    rows = comparison.rows
    columns = compact_columns(rows)
    fitting = _fitting(columns, comparison, console.width)
    left_out = [f"{column.title}: in table.md" for column in columns if column not in fitting]
    console.print(_text(short(caption(rows), SENTENCE_LIMIT), console, "bold"))
    console.print()
    console.print(_table(fitting, comparison, console))
    for line in (*explanation(rows), *left_out):
        console.print(_text(line, console, "dim"))
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


def _fitting(columns: list[Column], comparison: Comparison, width: int) -> list[Column]:
    """Leave optional columns out rather than wrap the names of the arms."""
    needed = -_GAP
    for column in columns:
        cells = [column.title, *(plain(column.cell(row)) for row in comparison.rows)]
        needed += _GAP + min(LABEL_LIMIT, max(map(len, cells)))
    return columns if needed <= width else [column for column in columns if not column.optional]


def _table(columns: list[Column], comparison: Comparison, console: Console) -> Table:
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
    ends = {one.arm for one, two in pairwise(comparison.rows) if one.arm.dataset != two.arm.dataset}
    for row in comparison.rows:
        style = "bold green" if row.recommended else "red" if row.negative_transfer else ""
        cells = [_text(short(plain(column.cell(row)), LABEL_LIMIT), console, style) for column in columns]
        table.add_row(*cells, end_section=row.arm in ends)
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
