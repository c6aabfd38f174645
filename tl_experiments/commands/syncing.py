"""``tl sync``: finished runs to the trackers, from their records."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_experiments.commands.arguments import Parser
from tl_experiments.errors import OK, SOME_FAILED, ConfigError, TrackingError, UserError
from tl_experiments.records import RECORD_FILE, START_FILE, SWEEP_FILE
from tl_experiments.safe_text import REDACTED

_ABOUT = """\
enter finished runs in trackers, from their records: also those that were made without one, or without a network

  tl sync outputs/demo                                   where its runs were to go, or else W&B
  tl sync outputs/demo tracker=wandb tracker.wandb.project=photos
  tl sync outputs/demo outputs/other 'tracker=[mlflow,tensorboard]'
  tl sync outputs/demo/3f2a9c0b1d4e                      one run
  tl sync --force outputs/demo                           also what is there already

A second call finds everything there. The exit code is 1 if something could not be entered.
"""
_OUTCOMES = ("new", "completed", "already there", "written offline", "failed", "left out", "not chosen")
_LEFT_OUT = {
    "left out": " (not finished, or never begun)",
    "not chosen": " (settings that val did not choose with tuning_seed: no runs)",
}


def main(arguments: Sequence[str]) -> int:
    """Push, a line a run, and a total a tracker."""
    parser = Parser("tl sync", _ABOUT)
    parser.add_argument("what", metavar="DIR", nargs="+", help="of a sweep, or of a single job; options of trackers")
    parser.add_argument("--force", action="store_true", help="enter runs again that are there")
    given = parser.parse_intermixed_args(arguments)
    overrides = [text for text in given.what if text.startswith(("tracker=", "tracker."))]
    sweeps = _sweeps([text for text in given.what if text not in overrides])
    chosen = {folder: _trackers(folder, overrides) for folder in sweeps}

    from tl_experiments.tracking.process import check_installed

    check_installed({name for options in chosen.values() for name in options})
    failed = False
    for folder, only in sweeps.items():
        for name, options in chosen[folder].items():
            failed |= _push(folder, name, options, only, given.force)
    return SOME_FAILED if failed else OK


def _push(folder: Path, name: str, options: Mapping[str, Any], only: set[str] | None, force: bool) -> bool:
    """Whether something could not be pushed."""
    from tl_experiments.tracking.process import pushing
    from tl_experiments.tracking.push import Pushed

    counts: Counter[str] = Counter()
    ended = True
    try:
        for one in pushing(folder, name, options, only, force):
            if isinstance(one, Pushed):
                counts[one.outcome] += 1
                if one.outcome not in _LEFT_OUT:
                    why = f": {one.why}" if one.why else ""
                    _say(f"{name}: {one.outcome}: {one.name} ({one.run}){why}")
            else:
                _say(one)
    except TrackingError as error:
        sys.stderr.write(f"error: {error}\n")
        ended = False
    totals = [f"{counts[one]} {one}{_LEFT_OUT.get(one, '')}" for one in _OUTCOMES if counts[one]]
    _say(f"{name}: {folder}: {', '.join(totals) or 'nothing to enter'}")
    offline = counts["written offline"] > 0 and options.get("mode") != "offline"
    return not ended or offline or counts["failed"] > 0


def _sweeps(folders: Sequence[str]) -> dict[Path, set[str] | None]:
    """Folder of a sweep -> the jobs that were asked for, None for all."""
    found: dict[Path, set[str] | None] = {}
    for text in folders:
        folder = Path(text) if Path(text).name else Path(text).resolve()
        if not folder.is_dir():
            if "=" in text:
                raise ConfigError(text, "not an option of a tracker", "tracker=... and tracker.NAME.OPTION=...")
            raise UserError(text, "no such folder", "give the folder of a sweep, outputs/<name>, or of one of its jobs")
        if (folder / SWEEP_FILE).is_file() or any(_begun(folder)):
            found[folder] = None
        elif (folder / START_FILE).is_file() or (folder / RECORD_FILE).is_file():
            only = found.setdefault(folder.parent, set())
            if only is not None:
                only.add(folder.name)
        else:
            from tl_experiments.analysis.folders import with_runs

            sweeps = with_runs(folder)
            fix = f"give a sweep in it, such as {sweeps}" if sweeps else "give the folder of a sweep"
            raise UserError(text, "no run in it", fix)
    if not found:
        raise ConfigError("tl sync", "no folder given", "give the folder of a sweep, outputs/<name>")
    return found


def _begun(folder: Path) -> Iterator[Path]:
    for name in (START_FILE, RECORD_FILE):
        yield from folder.glob(f"*/{name}")


def _trackers(folder: Path, overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options by tracker: what the command line says, then where the runs themselves were to go, then the defaults."""
    from tl_experiments.config.compose import compose

    recorded = _recorded(folder)
    if not any(text.startswith("tracker=") for text in overrides):
        overrides = [f"tracker=[{','.join(recorded or ['wandb'])}]", *overrides]
    chosen = compose(overrides).tracker.chosen()
    if not chosen:
        raise ConfigError("tracker", "none is chosen", "tracker=wandb, or 'tracker=[csv,mlflow]'")
    given = {text.partition("=")[0] for text in overrides}
    for name, options in chosen.items():
        for key, value in recorded.get(name, {}).items():
            if key in options and f"tracker.{name}.{key}" not in given:
                options[key] = value
    return chosen


def _recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Options of trackers that a run of the sweep was started with, but for whether it had a network, and secrets."""
    for path in _begun(folder):
        try:
            trackers = json.loads(path.read_text(encoding="utf-8"))["config"]["tracker"]
            return {
                name: {key: value for key, value in options.items() if key != "mode" and REDACTED not in str(value)}
                for name, options in trackers.items()
                if options
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return {}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
