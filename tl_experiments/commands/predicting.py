"""``tl predict``: the classes of new images."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tl_experiments.commands.arguments import Parser, positive
from tl_experiments.errors import OK, SOME_FAILED, ConfigError
from tl_experiments.safe_text import plain

if TYPE_CHECKING:
    from tl_experiments.inference.table import Table

_ABOUT = """\
the classes of new images, by a run, by the run of a sweep that val chose, or by an exported model

  tl predict outputs/photos new/                        every image in and below a folder -> predictions.csv
  tl predict outputs/photos a.jpg b.png                 a few: a table on the terminal
  tl predict outputs/photos list.csv --output list.parquet
                                                        files of the column path, relative to list.csv
  tl predict outputs/photos list.tsv --path-column file --root $HOME/photos
  tl predict outputs/photos new/ --top-k 3 --probabilities
  tl predict outputs/photos/4f2a81c03b7e/export new/    without the framework's training part: ONNX

A file that cannot be read gets a row that says why; the others are predicted, and the exit code is 1.
"""
_SHOWN = 20  # rows on the terminal, above which a file is written
_DEFAULT_FILE = Path("predictions.csv")


def main(arguments: Sequence[str]) -> int:
    """Predict and write."""
    given = _parse(arguments)
    from tl_experiments.commands.models import chosen_folder
    from tl_experiments.inference.inputs import list_inputs
    from tl_experiments.inference.table import SUFFIXES

    if given.output is not None and given.output.suffix.lower() not in SUFFIXES:
        raise ConfigError("--output", f"{given.output}, expected {' or '.join(SUFFIXES)}", "give a name that ends so")
    inputs = list_inputs(given.paths, given.root, given.path_column)
    folder = chosen_folder(given.model, given.seed, given.weights, export=True)

    from tl_experiments.inference.loading import load_model
    from tl_experiments.inference.pipeline import run_through
    from tl_experiments.inference.table import prediction_table

    model = load_model(folder, given.device, given.weights)
    if given.top_k > len(model.classes):
        raise ConfigError("--top-k", f"{given.top_k}, the model has {len(model.classes)} classes", "ask for fewer")
    for note in model.notes:
        sys.stderr.write(f"note: {plain(note)}\n")
    outputs = run_through(model, lambda number: model.read(inputs[number].path), len(inputs), given.batch_size)
    errors = {number: f"{error.what} -> {error.fix}" for number, error in outputs.errors.items()}
    table = prediction_table(
        [one.name for one in inputs],
        outputs.probabilities,
        model.classes,
        errors,
        top_k=given.top_k,
        all_probabilities=given.probabilities,
    )
    where = _deliver(table, given.output)
    if not errors:
        return OK
    first = inputs[min(errors)].name
    what = f"{len(errors)} of {len(inputs)} could not be read, first {first}: {errors[min(errors)]}"
    sys.stderr.write(plain(f"error: images: {what}; see the column error {where}") + "\n")
    return SOME_FAILED


def _deliver(table: Table, output: Path | None) -> str:
    from tl_experiments.inference.table import terminal_text, write_table

    if output is None and table.rows <= _SHOWN:
        sys.stdout.write(terminal_text(table))
        return "above"
    path = output or _DEFAULT_FILE
    replaced = ", in place of an older file" if path.exists() else ""
    write_table(path, table)
    sys.stdout.write(plain(f"{path}: {table.rows} rows{replaced}") + "\n")
    return f"of {path}"


def _parse(arguments: Sequence[str]) -> Namespace:
    parser = Parser("tl predict", _ABOUT)
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of a run, of a sweep, or of an export")
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help="image, folder of images, or csv or tsv table"
    )
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="what paths in a table are relative to; default: its folder"
    )
    parser.add_argument("--path-column", metavar="NAME", help="column of a table; default: path")
    parser.add_argument("--top-k", type=positive, default=1, metavar="K", help="columns of the K most probable classes")
    parser.add_argument("--probabilities", action="store_true", help="a column p(<class>) for every class")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f".csv or .parquet; up to {_SHOWN} rows are shown without it"
    )
    parser.add_model_options(batch_size=64)
    return parser.parse_args(arguments)
