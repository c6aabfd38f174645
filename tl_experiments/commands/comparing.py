"""``tl compare``: the table, the verdict and the report of finished sweeps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tl_experiments.commands.arguments import Parser
from tl_experiments.errors import OK, ConfigError

if TYPE_CHECKING:
    from tl_experiments.analysis import Comparison
    from tl_experiments.analysis.runs import FinishedRun

REPORT_FILE, FIGURES_FOLDER = "report.html", "figures"
FORMATS = ("csv", "markdown", "latex", "html")
_HEAD_BYTES = 2000  # of the report, in which its stamp stands

_ABOUT = """\
the table, the verdict and the report of finished sweeps

  tl compare outputs/digits_5_shots
  tl compare outputs/digits_5_shots outputs/digits_20_shots     several as one, in outputs/comparisons/
  tl compare outputs/digits_5_shots --output paper/digits       written there, not into its comparison/
  tl compare outputs/digits_5_shots --format latex > table.tex
  tl compare outputs/digits_5_shots --figures                   every figure as PNG and SVG
"""


def main(arguments: Sequence[str]) -> int:
    """Compare and show."""
    parser = Parser("tl compare", _ABOUT)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="of a sweep, or of a single job")
    parser.add_argument("--format", choices=FORMATS, help="print the comparison in this format instead")
    parser.add_argument("--figures", action="store_true", help="write every figure as PNG and SVG too")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write tables and report there; default: DIR/comparison, or"
        " comparisons/<names> beside the first of several",
    )
    given = parser.parse_args(arguments)
    if given.format == "html" and sys.stdout.isatty():  # names in it may hold control codes
        fix = "add > report.html, or open the comparison/report.html that tl compare DIR writes"
        raise ConfigError("--format html", "standard output is a terminal", fix)
    if given.format:
        sys.stdout.write(_text(given.format, given.folders, given.output))
    else:
        show_comparison(*given.folders, output=given.output)
    if given.figures:
        written = _write_figures(given.folders, given.output)
        sys.stderr.write(f"figures: {len(written)} files in {written[0].parent}\n")
    return OK


def show_comparison(*folders: Path, output: Path | None = None) -> None:
    """Print table and verdict of finished sweeps and where their report is, which is made unless it is there."""
    from rich.console import Console

    from tl_experiments.analysis import compare, show

    comparison = compare(*folders, output=output)
    console = Console()
    show(comparison, console)
    report = write_report(comparison, folders, output)
    console.print(f"\nreport: {report}", markup=False, highlight=False, soft_wrap=True)


def write_report(comparison: Comparison, folders: Sequence[Path], output: Path | None = None) -> Path:
    """``report.html`` beside the tables, made anew if it shows something else.

    Args:
        comparison: Of the folders.
        folders: Of the sweeps.
        output: As of ``compare``.
    """
    from tl_experiments.analysis.compare import comparison_folder, evidence
    from tl_experiments.report import stamp

    path = comparison_folder(folders, output) / REPORT_FILE
    if not _bears(path, stamp(comparison)):
        from tl_experiments.records import write_atomically
        from tl_experiments.report.page import render

        page = render(evidence(*folders, output=output), _pictures)
        # names of files that are not UTF-8 reach us with lone surrogates
        write_atomically(path, page.encode("utf-8", "replace"))
    return path


def _bears(path: Path, stamp: str) -> bool:
    try:
        with path.open(encoding="utf-8") as stream:
            return stamp in stream.read(_HEAD_BYTES)
    except (OSError, ValueError):
        return False


def _pictures(run: FinishedRun, items: Sequence[str]) -> Mapping[str, bytes]:
    from tl_experiments.data.location import located
    from tl_experiments.data.pictures import pictures

    return pictures(located(run.record.config, run.record.data), items)


def _text(name: str, folders: Sequence[Path], output: Path | None) -> str:
    from tl_experiments.analysis import compare

    comparison = compare(*folders, output=output)
    if name == "html":
        return write_report(comparison, folders, output).read_text(encoding="utf-8")
    from tl_experiments.analysis.latex import table_latex
    from tl_experiments.analysis.tables import table_csv, table_markdown

    writers: Mapping[str, Callable[[Comparison], str]] = {
        "csv": table_csv,
        "markdown": table_markdown,
        "latex": table_latex,
    }
    return writers[name](comparison)


def _write_figures(folders: Sequence[Path], output: Path | None) -> list[Path]:
    from tl_experiments.analysis.compare import comparison_folder, evidence
    from tl_experiments.report.files import write_figures

    return write_figures(evidence(*folders, output=output), comparison_folder(folders, output) / FIGURES_FOLDER)
