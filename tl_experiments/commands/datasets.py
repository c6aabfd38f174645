"""``tl data``: what a dataset holds, what is wrong with it, and what a model sees of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tl_experiments import interrupt
from tl_experiments.commands.arguments import Parser
from tl_experiments.config.schema import TrainConfig
from tl_experiments.config.typed import did_you_mean
from tl_experiments.errors import BAD_INPUT, OK, SOME_FAILED, UserError

_ABOUT = """\
tl data: look at a dataset before training on it

  tl data check dataset=image_folder dataset.root=$HOME/photos              counts, sizes, broken files, leakage
  tl data check dataset=image_folder dataset.root=$HOME/photos --json check.json
  tl data preview dataset=image_folder dataset.root=$HOME/photos augmentation=trivial backbone=resnet18

check ends with 0 if all is well, 1 if images are broken, stand in two splits or have two labels, 2 for bad input.
"""
_CHECK = "counts, sizes, broken files, copies and leakage of a dataset; options as for tl train"
_PREVIEW = "a picture of training images as the model sees them; options as for tl train"


def main(arguments: Sequence[str]) -> int:
    """Check or preview."""
    actions = {"check": _check, "preview": _preview}
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_ABOUT)
        return OK if arguments else BAD_INPUT
    action, rest = arguments[0], arguments[1:]
    if action not in actions:
        raise UserError(f"tl data {action}", "no such action", did_you_mean(action, actions))
    return actions[action](rest)


def _check(arguments: Sequence[str]) -> int:
    parser = Parser("tl data check", _CHECK)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for tl train: dataset=, ...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    given = parser.parse_intermixed_args(arguments)
    config = _config(given.overrides)
    from tl_experiments.data.census import as_text, as_values, take_census
    from tl_experiments.data.sources import divide, open_source
    from tl_experiments.records import write_atomically
    from tl_experiments.training.storage import store_of

    with interrupt.installed(at_once=True):
        source = open_source(config.dataset, store_of(config).digests)
        census = take_census(config.dataset.name, source, divide(source, config.dataset, config.seed).whole)
    sys.stdout.write(as_text(census) + "\n")
    if given.json is not None:
        write_atomically(given.json, json.dumps(as_values(census), indent=2, ensure_ascii=False) + "\n")
    return SOME_FAILED if census.hurts else OK


def _preview(arguments: Sequence[str]) -> int:
    parser = Parser("tl data preview", _PREVIEW)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for tl train: dataset=, ...")
    parser.add_argument("--images", type=int, default=8, help="training images, a row each (8)")
    parser.add_argument("--views", type=int, default=6, help="views of each (6)")
    parser.add_argument("--out", type=Path, default=Path("preview.png"), metavar="FILE", help="PNG (preview.png)")
    given = parser.parse_intermixed_args(arguments)
    for name in ("images", "views"):
        if not 1 <= getattr(given, name) <= _MOST:
            raise UserError(f"--{name}", f"got {getattr(given, name)}", f"give 1 to {_MOST}")
    if given.out.suffix.lower() != ".png":
        raise UserError("--out", f"{given.out}, expected a name that ends in .png", f"--out {given.out.stem}.png")
    config = _config(given.overrides)
    from tl_experiments.records import write_atomically
    from tl_experiments.training.preview import preview

    write_atomically(given.out, preview(config, given.images, given.views))
    sys.stdout.write(f"{given.out}\n")
    return OK


_MOST = 32


def _config(overrides: Sequence[str]) -> TrainConfig:
    for text in overrides:
        if "=" not in text and (Path(text).exists() or "/" in text):
            kind = "dataset=image_folder dataset.root" if not Path(text).is_file() else "dataset=csv dataset.path"
            raise UserError(text, "a path, expected options as for tl train", f"{kind}={shlex.quote(text)}")
    from tl_experiments.config.compose import compose
    from tl_experiments.sweeps.worker import start_logging

    start_logging()
    return compose(overrides)
