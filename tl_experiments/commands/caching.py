"""``tl cache``: what runs share on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tl_experiments.commands.arguments import Parser
from tl_experiments.errors import OK

_ABOUT = """\
decoded images and activations that runs share on disk

  tl cache list                        what there is, how large, when it was last used
  tl cache clear                       remove all that no running job has open
  tl cache clear decoded-3f            the tables whose key begins so
  tl cache clear kind=decoded          the tables of one kind
  tl cache list --dir /scratch/cache   of another folder than outputs/.cache, see feature_cache.dir

Removing costs time only: the next run makes again what it needs.
"""


def main(arguments: Sequence[str]) -> int:
    """List or clear."""
    parser = Parser("tl cache", _ABOUT)
    actions = parser.add_subparsers(dest="action", required=True, prog="tl cache")
    for name, about in {"list": "what there is", "clear": "remove tables"}.items():
        action = actions.add_parser(name, about=about)
        action.add_argument("--dir", type=Path, default=Path("outputs", ".cache"), help="the cache's folder")
        if name == "clear":
            action.add_argument("which", nargs="*", help="starts of keys, or kind=...; none is everything")
    given = parser.parse_args(arguments)
    from tl_experiments.cache.listing import clear, listing

    sys.stdout.write(listing(given.dir) if given.action == "list" else clear(given.dir, given.which))
    return OK
