"""A table of paths and labels, csv or tsv: any images on the disk, wherever they stand."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tl_experiments.config.typed import did_you_mean
from tl_experiments.data.checking import Files
from tl_experiments.data.decode import MAX_PIXELS
from tl_experiments.data.items import SPLITS, Item, Source
from tl_experiments.data.labels import SPLIT_WORDS, absent, check_classes, class_names, is_integer, listed, positions
from tl_experiments.errors import DataError
from tl_experiments.user_paths import expanded

_KEY = "dataset.path"
_DELIMITERS = (",", "\t", ";", "|")
_USUAL_SPLIT_COLUMN = "split"


@dataclass(frozen=True)
class Columns:
    """Names in the table's first row.

    Args:
        path: Of the images, relative to the root or absolute.
        label: Of the class names.
        split: Of the words train, val (valid, validation, dev) and test; a table without a column ``split`` is not
            split, but one of another name must be there.
    """

    path: str = "path"
    label: str = "label"
    split: str = _USUAL_SPLIT_COLUMN


@dataclass(frozen=True)
class _Row:
    number: int  # as a spreadsheet counts: the names of the columns are row 1
    path: str
    label: str
    split: str | None


_Problem = tuple[int, str, str]  # number of the row, what, fix


def open_csv(
    path: str,
    root: str | None = None,
    columns: Columns = Columns(),
    classes: Sequence[str] | None = None,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    digests: Path | None = None,
    test_set: bool = False,
) -> Source:
    """Read a table with a row for each image.

    UTF-8 with or without a byte order mark; of comma, tab, semicolon and bar, the delimiter is the one that cuts the
    first row into the most columns. The order of the rows does not matter: items are ordered by split, class and path,
    as those of a folder of images are. Their ids are the paths: a table over such a folder is that folder to the bit.

    Args:
        path: The table; ``~`` and environment variables are expanded, here and in ``root``.
        root: That paths are relative to; None is the table's folder.
        columns: Which are read; others are ignored.
        classes: Class names in label order; None takes those of train, in numerical order where all are integers,
            else sorted as text. Integer labels beside names that are none are positions in it.
        channels: That every image is loaded with; see ``load_image``.
        max_pixels: Of the largest image that is decoded.
        digests: Folder in which is remembered what is known of the files; None reads every file for the fingerprint.
        test_set: Read the rows of the split test alone, or all where there are no splits; one class is enough.

    Raises:
        DataError: The table cannot be read or lacks a column; rows, told by number, have a missing or unknown label,
            split or file, or name a file twice; there are fewer than two classes.
    """
    table = expanded(path)
    folder = table.parent if root is None else expanded(root)
    rows = _rows(table, columns)
    _refuse(table, _incomplete(rows, columns, classes or ()))
    split = "test" if test_set else "train"
    decisive = [row for row in rows if row.split is None or SPLIT_WORDS[row.split] == split]
    if not decisive:
        raise DataError(str(table), f"no rows of the split {split}", "mark some so: the classes are read from them")
    rows = decisive if test_set else rows
    _refuse(table, _repeated(rows))
    _refuse(table, _missing(rows, folder))
    names = class_names(row.label for row in decisive) if classes is None else tuple(classes)
    check_classes(str(table) if classes is None else "dataset.classes", names, least=1 if test_set else 2)
    label = positions((row.label for row in rows), names)
    _refuse(table, _unknown(rows, label, names))
    items = sorted(
        (Item(row.path, label[row.label], None if row.split is None else SPLIT_WORDS[row.split]) for row in rows),
        key=lambda item: (-1 if item.split is None else SPLITS.index(item.split), item.label, item.id),
    )
    # Remembered under the table's name: several tables may share a root
    files = Files(table, [os.path.abspath(folder / item.id) for item in items], channels, max_pixels, digests)
    return Source(
        names,
        tuple(items),
        files.load,
        files.digests,
        () if test_set else _notes(names, label, {label[row.label] for row in decisive}),
        check=files.check,
    )


def _rows(table: Path, columns: Columns) -> list[_Row]:
    header, lines = read_table(table)
    if columns.split != _USUAL_SPLIT_COLUMN and columns.split not in header:
        raise _no_column(table, "dataset.split_column", columns.split, header)
    named = {"dataset.path_column": columns.path, "dataset.label_column": columns.label}
    place = [column_place(table, option, name, header) for option, name in named.items()]
    split = header.index(columns.split) if columns.split in header else None
    rows, problems = [], []
    for number, cells in lines:
        if len(cells) != len(header):
            problems.append(
                (number, f"{len(cells)} cells, expected {len(header)}", "quote cells that hold a delimiter")
            )
            continue
        path, label = (cells[index] for index in place)
        rows.append(_Row(number, _normal(path), label.strip(), None if split is None else cells[split].strip()))
    _refuse(table, problems)
    if not rows:
        raise DataError(str(table), "no rows below the names of the columns", "add a row for each image")
    return rows


def read_table(table: Path, argument: str = _KEY) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Names of the columns, then number and cells of each row that is not empty; see ``open_csv`` for what is read.

    Args:
        table: The file.
        argument: How its path was given, for the error.

    Raises:
        DataError: It cannot be read as a table, or is empty.
    """
    try:
        text = table.read_bytes().decode("utf-8-sig")
        first = next((line for line in text.splitlines() if line.strip()), "")
        delimiter = max(_DELIMITERS, key=lambda one: len(next(csv.reader([first], delimiter=one), [])))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [(number, row) for number, row in enumerate(reader, start=1) if any(map(str.strip, row))]
    except OSError as error:
        raise DataError(argument, f"{table} cannot be read ({error.strerror})", "correct the path") from error
    except UnicodeDecodeError as error:
        if _is_binary(error.object):
            what = f"{table} is a binary file, expected a table of text: csv or tsv"
            fix = "dataset=npz reads it" if table.suffix.lower() == ".npz" else "give the table that lists the images"
            raise DataError(argument, what, fix) from error
        row = table.read_bytes()[: error.start].count(b"\n") + 1
        what = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise DataError(f"{table} row {row}", what, "save the table as UTF-8") from error
    except csv.Error as error:
        raise DataError(str(table), f"cannot be read as a table ({error})", "correct its quotes") from error
    if not lines:
        what = "empty, expected a row with the names of the columns"
        raise DataError(str(table), what, "add that row, and one for each image")
    (_, names), *rows = lines
    return [name.strip() for name in names], rows


def _is_binary(data: bytes) -> bool:
    """Whether no encoding of text explains a NUL near the start; UTF-16 begins with its mark."""
    return b"\0" in data[:4096] and not data.startswith((b"\xff\xfe", b"\xfe\xff"))


def column_place(table: Path, option: str, name: str, header: Sequence[str]) -> int:
    """Position of a column.

    Args:
        table: For the error.
        option: With which another column is named, for the error.
        name: Of the column.
        header: Names of all columns.

    Raises:
        DataError: There is no such column, or there are several.
    """
    if header.count(name) == 1:
        return header.index(name)
    if name in header:
        raise DataError(str(table), f"{header.count(name)} columns {name!r}, expected one", "rename one of them")
    raise _no_column(table, option, name, header)


def _no_column(table: Path, option: str, name: str, header: Sequence[str]) -> DataError:
    what = f"no column {name!r}, it has {listed(map(repr, header))}"
    return DataError(str(table), what, f"give {option}: {did_you_mean(name, header)}")


def _normal(path: str) -> str:
    """``./a.jpg`` and ``a.jpg`` are one file, also in tables from Windows."""
    return os.path.normpath(path).replace(os.sep, "/") if path.strip() else ""


def _incomplete(rows: Iterable[_Row], columns: Columns, classes: Collection[str]) -> Iterator[_Problem]:
    for row in rows:
        if not row.path:
            yield row.number, f"no {columns.path}", "name the image, or remove the row"
        if not row.label or (row.label.lower() == "nan" and row.label not in classes):
            yield (
                row.number,
                f"{columns.label} {row.label or 'empty'}, expected a class",
                "give a label, or remove the row",
            )
        if row.split is not None and row.split not in SPLIT_WORDS:
            got = repr(row.split) if row.split else "empty"
            yield row.number, f"{columns.split} {got}, expected train, val or test", "correct the word"


def _repeated(rows: Iterable[_Row]) -> Iterator[_Problem]:
    first: dict[str, _Row] = {}
    for row in rows:
        other = first.setdefault(row.path, row)
        if other is row:
            continue
        what = f"{row.path} stands in row {other.number} already"
        if other.label != row.label:
            yield row.number, f"{what}, as {other.label!r} and here as {row.label!r}", "keep the row that is right"
        else:
            yield row.number, what, "keep one of the two rows"


def _missing(rows: Iterable[_Row], folder: Path) -> Iterator[_Problem]:
    for row in rows:
        if not os.path.isfile(folder / row.path):
            yield (
                row.number,
                f"no file {folder / row.path}",
                "correct the path, or dataset.root, which it is relative to",
            )


def _unknown(rows: Iterable[_Row], label: Collection[str], names: Sequence[str]) -> Iterator[_Problem]:
    are_positions = not any(map(is_integer, names)) and all(is_integer(row.label) for row in rows)
    expected = f"0 to {len(names) - 1} or a class" if are_positions else "a class"
    for row in rows:
        if row.label not in label:
            what = f"label {row.label!r}, expected {expected} of {listed(names)}"
            yield row.number, what, "correct it, or dataset.classes (without it: the classes of train)"


def _refuse(table: Path, problems: Iterable[_Problem]) -> None:
    """Name the first row that is wrong, and the numbers of the others."""
    found = sorted(problems)
    if found:
        number, what, fix = found[0]
        others = sorted({other for other, _, _ in found} - {number})
        more = f"; as bad are rows {listed(others)}" if others else ""
        raise DataError(f"{table} row {number}", what + more, fix)


def _notes(names: Sequence[str], label: dict[str, int], present: Collection[int]) -> tuple[str, ...]:
    notes = absent(names, present)
    if all(map(is_integer, names)):
        notes.append("All labels are integers: classes are in numerical order.")
    elif set(label) != set(names):
        notes.append(f"Labels are positions in the classes, 0 is {names[0]}.")
    return tuple(notes)
