"""``tl evaluate``: a run's metrics on another dataset."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tl_experiments.commands.arguments import Parser
from tl_experiments.errors import OK
from tl_experiments.safe_text import plain

if TYPE_CHECKING:
    from tl_experiments.inference.evaluation import Evaluation

_ABOUT = """\
a run's metrics on another dataset, or once more on its own; of a sweep, the run that val chose

  tl evaluate outputs/photos dataset=image_folder dataset.root=$HOME/new_photos
  tl evaluate outputs/photos dataset=image_folder dataset.root=$HOME/new_photos --split test
  tl evaluate outputs/photos                                    its own test split
  tl evaluate outputs/photos dataset.root=$HOME/moved/photos    its own dataset at another place
  tl evaluate outputs/photos dataset=image_folder dataset.root=new --map kitten=cat --map puppy=dog

Classes are matched by name; those of the dataset may be fewer than the model's.
"""
_SHOWN = 20  # classes in the table on the terminal


def main(arguments: Sequence[str]) -> int:
    """Evaluate, write and show."""
    parser = Parser("tl evaluate", _ABOUT)
    parser.add_argument("model", metavar="RUN", type=Path, help="folder of a run or of a sweep")
    parser.add_argument("overrides", metavar="dataset...", nargs="*", help="the dataset, as for tl train")
    parser.add_argument(
        "--split",
        help="train, val, test, test/<name> or all; default: test, of another dataset that comes without splits: all",
    )
    parser.add_argument(
        "--map", type=_pair, action="append", default=[], metavar="THEIRS=OURS", help="a class under another name"
    )
    parser.add_model_options(batch_size=None)
    given = parser.parse_args(arguments)
    from tl_experiments.commands.models import chosen_folder
    from tl_experiments.data.location import located
    from tl_experiments.inference.dataset import chosen_dataset
    from tl_experiments.records import RunRecord

    folder = chosen_folder(given.model, given.seed, given.weights)
    record = RunRecord.read(folder)
    dataset = chosen_dataset(located(record.config, record.data), given.overrides)

    from tl_experiments.inference.evaluation import evaluate
    from tl_experiments.inference.loading import load_model

    model = load_model(folder, given.device, given.weights)
    evaluation = evaluate(
        folder, model, dataset, split=given.split, renamed=dict(given.map), batch_size=given.batch_size
    )
    for note in evaluation.notes:
        sys.stderr.write(f"note: {plain(note)}\n")
    sys.stdout.write(_text(evaluation))
    return OK


def _text(evaluation: Evaluation) -> str:
    predictions = evaluation.predictions
    lines = [f"{name:<18} {value:.4f}" for name, value in evaluation.metrics.items()]
    by_class = evaluation.by_class
    present = [label for label, images in enumerate(by_class.support) if images]
    if len(present) <= _SHOWN:
        names = [plain(predictions.classes[label]) for label in present]
        width = max(5, *map(len, names))
        lines += ["", f"{'class':<{width}}  images  precision  recall     f1"]
        for name, label in zip(names, present, strict=True):
            rates = (by_class.precision[label], by_class.recall[label], by_class.f1[label])
            cells = [f"{rate:.4f}" if rate == rate else "-" for rate in rates]  # NaN: never predicted
            lines.append(f"{name:<{width}}  {by_class.support[label]:>6}  {cells[0]:>9}  {cells[1]:>6}  {cells[2]:>5}")
    return "\n".join([f"{len(predictions.items)} images", *lines, "", f"written: {plain(str(evaluation.folder))}", ""])


def _pair(text: str) -> tuple[str, str]:
    theirs, separator, ours = text.partition("=")
    if not separator or not theirs or not ours:
        raise ArgumentTypeError(f"got {text!r}, expected <class of the dataset>=<class of the model>")
    return theirs, ours
