"""``tl cancel``: end what runs of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tl_experiments.commands.arguments import Parser
from tl_experiments.errors import OK
from tl_experiments.safe_text import plain

_ABOUT = """\
end what runs of a sweep, on this machine or on a cluster; nothing that is done is lost

  tl cancel outputs/digits_5_shots
  tl cancel outputs/digits_5_shots --jobs seed=0 3f2a     on a cluster: tasks with these jobs, by override or id
  tl cancel outputs/digits_5_shots --forget               of a cluster that is gone for good: enter them as ended

Jobs write a resume point and are entered as interrupted; the same command again goes on with them. Jobs that are
trained together are one task, which ends as a whole.
"""


def main(arguments: Sequence[str]) -> int:
    """Cancel, and say what."""
    parser = Parser("tl cancel", _ABOUT)
    parser.add_argument("folder", metavar="DIR", type=Path, help="of a sweep")
    parser.add_argument(
        "--jobs", nargs="+", default=[], metavar="JOB", help="start of an id, or overrides: 'n=2 seed=0'"
    )
    parser.add_argument("--forget", action="store_true", help="do not ask the cluster: its tasks are gone")
    given = parser.parse_args(arguments)
    from tl_experiments.sweeps.cancelling import cancel

    sys.stdout.write(plain(cancel(given.folder, given.jobs, forget=given.forget)) + "\n")
    return OK
