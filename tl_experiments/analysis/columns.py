"""The columns of the printed tables. What is the same in every row stands in the caption instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tl_experiments.analysis.arms import differs
from tl_experiments.analysis.pairing import SEEDS_TEST, SPLITS_TEST
from tl_experiments.analysis.results import LostJob, Row
from tl_experiments.analysis.wording import (
    count,
    interval,
    memory,
    p_sign,
    plural,
    seconds,
    share,
    signed,
    with_margin,
)

Cell = Callable[[Row], str]

_FURTHER_METRICS = {"AUROC": "auroc", "top-5": "top_5_accuracy", "calibration error": "calibration_error"}
_LABELS = ("dataset", "backbone", "head")
_BUDGET: Mapping[str, Callable[[Row], int]] = {
    "seeds": lambda row: len(row.seeds),
    "splits": lambda row: row.splits,
    "trials": lambda row: row.trials,
    "epochs": lambda row: row.max_epochs,
    "labels": lambda row: row.labels_spent,
}


@dataclass(frozen=True)
class Column:
    """One column of a table for people.

    Args:
        title: Heading.
        cell: Row -> text, not yet made safe.
        number: Whether it is set flush right.
        optional: Order in which a narrow terminal goes without it, 1 first; 0 keeps it always.
    """

    title: str
    cell: Cell
    number: bool = True
    optional: int = 0


def compact_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns for a terminal of 100 characters; intervals as half widths."""
    columns = [
        *_label_columns(rows),
        Column("val", lambda row: share(row.val_accuracy)),
        Column("test", lambda row: with_margin(row.test_accuracy)),
        *(Column(name, _metric(f"test/{name}", "accuracy"), optional=4) for name in further_tests(rows)),
        Column("gain", lambda row: "" if row.transfer_gain is None else with_margin(row.transfer_gain, sign=True)),
        Column("p", _p_value),
        Column("trained", lambda row: count(row.trained_parameters), optional=2),
        Column("a run", lambda row: seconds(row.wall_clock_s), optional=3),
        Column("memory", lambda row: memory(row.peak_memory_bytes), optional=1),
    ]
    return [column for column in columns if any(column.cell(row) for row in rows)]


def full_columns(rows: Sequence[Row]) -> list[Column]:
    """Every column that has a value and is not in the caption, for a page that has no width."""
    columns = [
        *_label_columns(rows),
        Column("val accuracy", lambda row: share(row.val_accuracy)),
        Column("test accuracy", _test),
        Column("macro F1", lambda row: share(row.test_macro_f1)),
        Column("NLL", lambda row: share(row.test_nll)),
        *(Column(title, _metric("test", name)) for title, name in _FURTHER_METRICS.items()),
        *(Column(f"{name} accuracy", _interval_of(f"test/{name}")) for name in further_tests(rows)),
        Column("transfer gain", _gain),
        Column("p", _p_value),
        Column("trained", lambda row: f"{count(row.trained_parameters)} of {count(row.total_parameters)}"),
        Column("a run", lambda row: seconds(row.wall_clock_s)),
        Column("all trials", lambda row: seconds(row.all_trials_s)),
        Column("pretraining", lambda row: seconds(row.pretraining_s) if row.pretraining_s else ""),
        Column("memory", lambda row: memory(row.peak_memory_bytes)),
        Column("not dominated", lambda row: ", ".join(row.not_dominated), number=False),
    ]
    return [column for column in columns if any(column.cell(row) for row in rows)]


def caption(rows: Sequence[Row]) -> str:
    """What all rows share."""
    from_weights = [row for row in rows if row.arm.starts_from_weights] or rows
    shared = [f"{name} {getattr(from_weights[0].arm, name)}" for name in _LABELS if not _differs(rows, name)]
    for name, number in _BUDGET.items():
        if _constant(rows, number) and (name != "splits" or rows[0].splits > 1):
            text = plural(number(rows[0]), name.removesuffix("s"))
            shared.append(f"{text} an arm" if name == "trials" else text)
    return " · ".join(shared)


def explanation(rows: Sequence[Row]) -> tuple[str, ...]:
    """How to read the columns, a line each."""
    widened = "over splits, widened since their training sets overlap"
    over, test = {
        (False,): ("over seeds", f"{SEEDS_TEST} over seeds"),
        (True,): (widened, f"{SPLITS_TEST} over splits"),
        (False, True): (
            f"over seeds, and {widened}, for datasets that ran on several",
            f"{SEEDS_TEST} over seeds, and {SPLITS_TEST} for datasets that ran on several splits,",
        ),
    }[tuple(sorted({row.splits > 1 for row in rows}))]
    parts = [
        "val: accuracy; chose the trial of each arm and the order",
        f"test: accuracy with its 95% t interval {over}",
    ]
    if any(row.transfer_gain for row in rows):
        parts.append("gain: test accuracy over from_scratch, paired by seed and split, with its 95% t interval")
    if any(found is not None and found.sd == 0 for row in rows for found in (row.test_accuracy, row.transfer_gain)):
        parts.append(
            "no interval: all runs or differences are equal, as those of a solved head on the same labels; that says "
            "nothing of how another would differ"
        )
    if any(row.p_value is not None for row in rows):
        parts.append(f"p: of the first arm against this one: {test} on test accuracy, two-sided, Holm")
    if any(row.unequal for row in rows):
        parts.append("*: another budget than most arms had")
    return tuple(parts)


def further_tests(rows: Sequence[Row]) -> list[str]:
    """Names of the further test sets of any row, without ``test/``."""
    splits = {split for row in rows for split in row.metrics if split.startswith("test/")}
    return sorted(split.removeprefix("test/") for split in splits)


def job_name(job: LostJob) -> str:
    """What the command line said for the job, or its hash."""
    return " ".join(job.overrides) or job.job_id


def _label_columns(rows: Sequence[Row]) -> list[Column]:
    """What tells the rows apart: the strategy always, the rest where it varies."""
    columns = [Column(name, _label(name), number=False) for name in _LABELS if _differs(rows, name)]
    columns.append(Column("freeze_strategy", lambda row: row.arm.freeze_strategy, number=False))
    keys = {key for row in rows for key in row.settings}
    if len(keys) == 1:
        (key,) = keys
        columns.append(Column(key, lambda row: row.settings.get(key, "")))
    else:
        columns.append(Column("chosen", _settings, number=False))
    for name, number in _BUDGET.items():
        if not _constant(rows, number):
            columns.append(_number_column(name, number))
    return columns


def _differs(rows: Sequence[Row], label: str) -> bool:
    return differs([row.arm for row in rows], label)


def _label(name: str) -> Cell:
    return lambda row: str(getattr(row.arm, name))


def _number_column(name: str, number: Callable[[Row], int]) -> Column:
    return Column(name, lambda row: f"{number(row)}{'*' if name in row.unequal else ''}")


def _metric(split: str, name: str) -> Cell:
    return lambda row: share(row.metrics[split][name].mean) if name in row.metrics.get(split, {}) else ""


def _interval_of(split: str) -> Cell:
    def cell(row: Row) -> str:
        found = row.metrics.get(split, {}).get("accuracy")
        return "" if found is None else f"{share(found.mean)} {interval(found, of_share=True)}".rstrip()

    return cell


def _settings(row: Row) -> str:
    return ", ".join(f"{key}={value}" for key, value in row.settings.items())


def _test(row: Row) -> str:
    return f"{share(row.test_accuracy.mean)} {interval(row.test_accuracy, of_share=True)}".rstrip()


def _gain(row: Row) -> str:
    gain = row.transfer_gain
    return "" if gain is None else f"{signed(gain.mean)} {interval(gain)}".rstrip()


def _p_value(row: Row) -> str:
    return "" if row.p_value is None else p_sign(row.p_value).removeprefix("=")


def _constant(rows: Sequence[Row], value: Callable[[Row], object]) -> bool:
    return len({value(row) for row in rows}) == 1
