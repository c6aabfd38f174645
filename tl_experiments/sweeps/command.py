"""The command line of a sweep, before Hydra reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_OPTION = re.compile(r"(?P<key>(?P<group>\w+)\.[\w.]+)=(?P<value>.*)", re.DOTALL)
_MULTIRUN = {"-m", "--multirun"}


def conditional(arguments: Sequence[str]) -> list[str]:
    """Let an option of a group apply only to the choices that have it.

    In ``-m freeze_strategy=full,last_n_blocks freeze_strategy.n=4`` Hydra would look for ``n`` in the group's default
    choice before the sweep begins. Written as a sweep over one value it is left to the jobs, as swept options are.
    ``-m`` may stand anywhere; argparse wants it before the overrides.
    """
    if not _MULTIRUN & set(arguments):
        return list(arguments)
    arguments = ["--multirun", *(text for text in arguments if text not in _MULTIRUN)]
    return [_as_sweep(text) for text in arguments]


def _as_sweep(text: str) -> str:
    match = _OPTION.fullmatch(text)
    # choice() takes neither null nor what is a sweep already; one list is one value
    not_one = r"|null|.*[({].*|(?!\[[^\[\]]*\]$).*[,\[].*"
    if match is None or match["group"] == "hydra" or re.fullmatch(not_one, match["value"], re.IGNORECASE | re.DOTALL):
        return text
    return f"{match['key']}=choice({match['value']})"
