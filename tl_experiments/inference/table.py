"""Predictions as a table: one row an input, in the inputs' order. Without torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl_experiments.records import write_atomically
from tl_experiments.safe_text import csv_text, plain

SUFFIXES = (".csv", ".parquet")

Cells = list[str] | NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Columns of equal length, by name.

    Args:
        columns: Name and cells: text, which is empty where there is none, or numbers, NaN where there is none.
    """

    columns: tuple[tuple[str, Cells], ...]

    @property
    def rows(self) -> int:
        """Of every column."""
        return len(self.columns[0][1])


def prediction_table(
    names: Sequence[str],
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
    errors: dict[int, str],
    *,
    top_k: int,
    all_probabilities: bool,
) -> Table:
    """``path``, ``prediction``, ``probability``, ``prediction_2``, ..., ``error``.

    Args:
        names: Of the inputs, ``n``.
        probabilities: ``(n, n_classes)``; a row of NaN where the input could not be read.
        classes: Class names in label order.
        errors: Position -> what is wrong, of those inputs.
        top_k: How many of the most probable classes get their columns, 1 to ``n_classes``; of equals the first.
        all_probabilities: Whether each class gets a column ``p(<class>)``.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    columns: list[tuple[str, Cells]] = [("path", [_readable(name) for name in names])]
    for rank in range(top_k):
        suffix = f"_{rank + 1}" if rank else ""
        labels = order[:, rank]
        chosen = ["" if number in errors else classes[label] for number, label in enumerate(labels)]
        columns.append((f"prediction{suffix}", chosen))
        columns.append((f"probability{suffix}", probabilities[np.arange(len(labels)), labels]))
    if all_probabilities:
        columns += [(f"p({name})", probabilities[:, label]) for label, name in enumerate(classes)]
    columns.append(("error", [errors.get(number, "") for number in range(len(names))]))
    return Table(tuple(columns))


def write_table(path: Path, table: Table) -> None:
    """Write csv, whose text no spreadsheet runs, or parquet, which is exact, whole or not at all.

    Raises:
        StorageError: The disk is full.
    """
    write_atomically(path, _parquet(table) if path.suffix.lower() == ".parquet" else _csv(table))


def terminal_text(table: Table) -> str:
    """Aligned columns of text that cannot steer a terminal; an error column without errors is left out."""
    shown = [
        [plain(name), *map(plain, _texts(cells))] for name, cells in table.columns if name != "error" or any(cells)
    ]
    widths = [max(map(len, column)) for column in shown]
    rows = zip(*shown, strict=True)
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _csv(table: Table) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([csv_text(name) for name, _ in table.columns])
    columns = [
        [csv_text(cell) for cell in cells] if isinstance(cells, list) else _texts(cells) for _, cells in table.columns
    ]
    writer.writerows(zip(*columns, strict=True))
    return stream.getvalue()


def _parquet(table: Table) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [
        pa.array([cell or None for cell in cells], pa.string()) if isinstance(cells, list)
        else pa.array(cells, from_pandas=True)  # NaN is null
        for _, cells in table.columns
    ]  # fmt: skip
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, [name for name, _ in table.columns]), stream)
    return stream.getvalue()


def _texts(cells: Cells) -> list[str]:
    if isinstance(cells, list):
        return cells
    return ["" if np.isnan(number) else f"{number:.6g}" for number in cells]


def _readable(name: str) -> str:
    """A name that is not UTF-8 reaches us with surrogates, which no file can hold: ``\\xe9`` stands for such a byte."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
