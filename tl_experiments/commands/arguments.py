"""Options of the verbs that Hydra does not see: argparse, with our one-line errors."""

from __future__ import annotations

import argparse
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

    def error(self, message: str) -> NoReturn:
        """What is wrong with the command line.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(self.prog, message, f"see {self.prog} --help")
