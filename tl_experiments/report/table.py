"""The table of arms with what its columns are sorted by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tl_experiments.analysis.columns import Column, full_columns
from tl_experiments.analysis.results import Row

# Texts of these are rounded, or carry units: sorting goes by the number behind them.
_NUMBERS: Mapping[str, Callable[[Row], float | None]] = {
    "val accuracy": lambda row: row.val_accuracy,
    "test accuracy": lambda row: row.test_accuracy.mean,
    "macro F1": lambda row: row.test_macro_f1,
    "NLL": lambda row: row.test_nll,
    "transfer gain": lambda row: None if row.transfer_gain is None else row.transfer_gain.mean,
    "p": lambda row: row.p_value,
    "trained": lambda row: row.trained_parameters,
    "a run": lambda row: row.wall_clock_s,
    "all trials": lambda row: row.all_trials_s,
    "pretraining": lambda row: row.pretraining_s,
    "memory": lambda row: row.peak_memory_bytes,
}
_FIRST = (
    *("dataset", "backbone", "head", "freeze_strategy", "val accuracy", "test accuracy", "transfer gain", "p"),
    *("trained", "a run", "memory", "not dominated"),
)


@dataclass(frozen=True)
class TableCell:
    """A text and what it is sorted by; ``""`` stands for no value and comes last."""

    text: str
    sort: str


def columns(rows: Sequence[Row]) -> list[Column]:
    """Those of the Markdown table: what names the arms, then what matters most, then the rest."""
    rank = {title: place for place, title in enumerate(_FIRST)}
    return sorted(full_columns(rows), key=lambda column: rank.get(column.title, len(rank)))


def cells(row: Row, shown: Sequence[Column]) -> list[TableCell]:
    """One row."""
    return [TableCell(column.cell(row), _sort_key(column, row)) for column in shown]


def _sort_key(column: Column, row: Row) -> str:
    text = column.cell(row)
    if not column.number:
        return text
    if column.title in _NUMBERS:
        value = _NUMBERS[column.title](row)
        return "" if value is None else repr(float(value))
    # a count that may bear a mark, a number before its interval, or a setting
    return text.split(" ")[0].rstrip("*")
