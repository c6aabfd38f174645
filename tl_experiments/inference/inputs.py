"""Which images a command line names: folders, csv files, single files. Without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tl_experiments.data.csv_file import column_place, read_table
from tl_experiments.data.endings import ENDINGS, ending, passed_over
from tl_experiments.errors import ConfigError, DataError
from tl_experiments.safe_text import plain

PATH_COLUMN = "path"
TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Input:
    """One image to predict.

    Args:
        name: As it was found or written: what the row of its prediction says.
        path: Of the file.
    """

    name: str
    path: Path


def list_inputs(paths: Sequence[Path], root: Path | None = None, path_column: str | None = None) -> tuple[Input, ...]:
    """The images of all ``paths``, in their order.

    A folder is searched with the folders in it, sorted as text, without anything hidden; how many of its files do not
    end as images do is said. A table, csv or tsv, is read as those that one trains on; a row whose file is missing is
    an input like any other. Any other file is an image, whatever its name.

    Args:
        paths: Folders, tables and images.
        root: Folder that the paths in tables are relative to; None is each table's own.
        path_column: Of the tables; None is ``path``.

    Raises:
        DataError: A path does not exist, a folder holds no image, or a table has no such column or no row.
        ConfigError: ``root`` is no folder, or it or ``path_column`` is given without a table.
    """
    for option, value in (("--root", root), ("--path-column", path_column)):
        if value is not None and not any(_is_table(path) for path in paths):
            raise ConfigError(option, "no table among the inputs", "leave it out, or give a csv or tsv file")
    if root is not None and not root.is_dir():
        raise ConfigError("--root", f"no folder {root}", "give the folder that the paths in the table are relative to")
    found: list[Input] = []
    for path in paths:
        if path.is_dir():
            found += _of_folder(path)
        elif not path.exists():
            raise DataError(str(path), "no such file or folder", "give an image, a folder of images or a table")
        elif _is_table(path):
            found += _of_table(path, root or path.parent, path_column or PATH_COLUMN)
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


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES and not path.is_dir()


def _of_table(table: Path, root: Path, column: str) -> list[Input]:
    header, rows = read_table(table, "PATH")
    place = column_place(table, "--path-column", column, header)
    if not rows:
        raise DataError(str(table), "no row below its header", "list one file a row")
    # a short row has no cell: then the root itself is what cannot be decoded
    names = [cells[place] if place < len(cells) else "" for _, cells in rows]
    return [Input(name, root / name) for name in names]
