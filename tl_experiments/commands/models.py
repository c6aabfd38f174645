"""The model that a command line names: a run, a sweep, or an exported folder. Without torch."""

from __future__ import annotations

import sys
from pathlib import Path

from tl_experiments.errors import ConfigError
from tl_experiments.safe_text import plain


def chosen_folder(given: Path, seed: int | None, weights: Path | None, *, export: bool = False) -> Path:
    """The folder of the run or export to use; says which run of a sweep that is.

    Args:
        given: By the user.
        seed: Which run of the arm that val chose; None is the best of them on val.
        weights: The file that the run started from, where it is elsewhere now.
        export: Whether an exported model will do.

    Raises:
        UserError: There is no model to use in it.
    """
    from tl_experiments.inference.folders import check_run, is_export, is_run

    if is_export(given):
        if not export:
            raise ConfigError(str(given), "an exported model, expected a run or a sweep", "give the run's folder")
        return given
    if given.is_file():
        raise ConfigError(str(given), "a file, expected a folder", "give the folder of a run, a sweep or an export")
    folder = given
    if not is_run(given):
        from tl_experiments.analysis.winner import winner

        found = winner(given, seed)
        folder = found.folder
        sys.stderr.write(plain(f"model     {folder}: {found.reason}") + "\n")
    elif seed is not None:
        raise ConfigError("--seed", f"{given} is a single run", "leave it out, or give the folder of a sweep")
    check_run(folder, weights)
    return folder
