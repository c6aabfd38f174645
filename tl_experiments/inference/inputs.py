"""Which images a command line names: folders, csv files, single files. Without torch."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tl_experiments.data.endings import ENDINGS, ending, passed_over
from tl_experiments.errors import DataError, first_line
from tl_experiments.safe_text import plain

PATH_COLUMN = "path"


@dataclass(frozen=True)
class Input:
    """One image to predict.

    Args:
        name: As it was found or written: what the row of its prediction says.
        path: Of the file.
    """

    name: str
    path: Path


def list_inputs(paths: Sequence[Path]) -> tuple[Input, ...]:
    """The images of all ``paths``, in their order.

    A folder is searched with the folders in it, sorted as text, without anything hidden; how many of its files do not
    end as images do is said. A csv file has a column ``path``, relative to the folder of the csv file; a row whose file
    is missing is an input like any other. Any other file is an image, whatever its name.

    Raises:
        DataError: A path does not exist, a folder holds no image, or a csv file has no such column or no row.
    """
    found: list[Input] = []
    for path in paths:
        if path.is_dir():
            found += _of_folder(path)
        elif not path.exists():
            raise DataError(str(path), "no such file or folder", "give an image, a folder of images or a csv file")
        elif path.suffix.lower() == ".csv":
            found += _of_csv(path)
        else:
            found.append(Input(str(path), path))
    return tuple(found)


def _of_folder(folder: Path) -> list[Input]:
    files = list(_walk(folder, frozenset()))
    found = [Input(str(path), path) for path in files if ending(path.name) in ENDINGS]
    others = passed_over(path.name for path in files)
    if not found:
        what = f"no image in it or below it ({', '.join(sorted(ENDINGS))})" + (f"; {others}" if others else "")
        raise DataError(str(folder), what, "give another folder, or name such files one by one")
    if others:
        sys.stderr.write(plain(f"note: {folder}: {others}: the ending is no image's") + "\n")
    return found


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that it lies in
        return
    try:
        with os.scandir(folder) as entries:
            visible = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(str(folder), f"cannot be read ({error.strerror})", "check its permissions") from None
    for name, is_folder in visible:
        if is_folder:
            yield from _walk(folder / name, above | {real})
        else:
            yield folder / name


def _of_csv(path: Path) -> list[Input]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            columns = rows.fieldnames or ()
            names = [row[PATH_COLUMN] for row in rows] if PATH_COLUMN in columns else None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(str(path), f"cannot be read ({first_line(error)})", "store it as csv in UTF-8") from None
    if names is None:
        seen = ", ".join(columns[:10]) or "an empty file"
        raise DataError(str(path), f"no column {PATH_COLUMN} ({seen})", f"name the column of the files {PATH_COLUMN}")
    if not names:
        raise DataError(str(path), "no row below its header", "list one file a row")
    # a short row has no cell: then the csv's own folder is what cannot be decoded
    return [Input(name or "", path.parent / (name or "")) for name in names]
