"""Options of the verbs that Hydra does not see: argparse, with our one-line errors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from tl_experiments.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing its usage; the description is printed as it stands, examples first.

    Args:
        prog: The words before the arguments, for example ``tl compare``.
        about: What ``--help`` shows above the options.
    """

    def __init__(self, prog: str, about: str = "") -> None:
        super().__init__(
            prog=prog,
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_model_options(self, batch_size: int | None) -> None:
        """``--seed``, ``--weights``, ``--device``, ``--batch-size``: of the verbs that use a finished run."""
        self.add_argument("--seed", type=int, help="of a sweep: the run of this seed, not the best one on val")
        self.add_argument("--weights", type=Path, metavar="FILE", help="what the run started from, if it was moved")
        self.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
        default = "the run's own" if batch_size is None else batch_size
        self.add_argument(
            "--batch-size", type=positive, default=batch_size, metavar="N", help=f"images a step, default: {default}"
        )

    def error(self, message: str) -> NoReturn:
        """What is wrong with the command line.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(self.prog, message, f"see {self.prog} --help")


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of 1 or more")
    return number
