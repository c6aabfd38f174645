"""``tl compare``: the table and the verdict of finished sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tl_experiments.commands.arguments import Parser
from tl_experiments.errors import OK

_ABOUT = """\
the table and the verdict of finished sweeps

  tl compare outputs/digits_5_shots
  tl compare outputs/digits_5_shots outputs/digits_20_shots     several as one
"""


def main(arguments: Sequence[str]) -> int:
    """Compare and show."""
    parser = Parser("tl compare", _ABOUT)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="of a sweep, or of a single job")
    given = parser.parse_args(arguments)
    show_comparison(*given.folders)
    return OK


def show_comparison(*folders: Path) -> None:
    """Print table and verdict of finished sweeps."""
    from rich.console import Console

    from tl_experiments.analysis import compare, show

    show(compare(*folders), Console())
