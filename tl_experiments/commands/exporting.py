"""``tl export``: a run's model for other programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tl_experiments.commands.arguments import Parser
from tl_experiments.errors import OK, SOME_FAILED
from tl_experiments.safe_text import plain

_ABOUT = """\
a run's model, or that of the run of a sweep that val chose, for other programs

  tl export outputs/photos                           every format that is installed, into <run>/export/
  tl export outputs/photos --format onnx
  tl export outputs/photos --format safetensors torch_export
  tl predict outputs/photos/4f2a81c03b7e/export new/ what was exported, used

Each file takes uint8 images, already resized and cropped, and gives logits; model.json beside them says the rest.
Before a file is called done its outputs are compared with the model's on test images.
"""


_FORMATS = ("safetensors", "torch_export", "onnx")


def main(arguments: Sequence[str]) -> int:
    """Export and say what was compared."""
    parser = Parser("tl export", _ABOUT)
    parser.add_argument("model", metavar="RUN", type=Path, help="folder of a run or of a sweep")
    parser.add_argument(
        "--format",
        dest="formats",
        nargs="+",
        type=_format,
        metavar="FORMAT",
        help=f"{', '.join(_FORMATS)}; default: all",
    )
    parser.add_argument("--seed", type=int, help="of a sweep: the run of this seed, not the best one on val")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="what the run started from, if it was moved")
    given = parser.parse_args(arguments)
    from tl_experiments.commands.models import chosen_folder

    folder = chosen_folder(given.model, given.seed, given.weights)

    from tl_experiments.inference.description import FILES
    from tl_experiments.inference.export import export

    exported = export(folder, given.formats, given.weights)
    for note in exported.notes:
        sys.stderr.write(f"note: {plain(note)}\n")
    for name, check in exported.checks.items():
        path = plain(str(exported.folder / FILES[name]))
        difference = check["max_probability_difference"]
        equal = f"equal classes on {check['compared']} images, probabilities to {difference:.1e}"
        sys.stdout.write(f"{path}: {equal}\n")
    for name, reason in exported.failed.items():
        sys.stderr.write(plain(f"error: {name}: not written: {reason} -> use another format") + "\n")
    return SOME_FAILED if exported.failed else OK


def _format(text: str) -> str:
    if text not in _FORMATS:
        what = f"got {text!r}, expected {', '.join(_FORMATS)}; several with blanks: --format safetensors onnx"
        raise argparse.ArgumentTypeError(what)
    return text
