"""``tl <verb>``: the verb is taken off here, the rest of a training verb's line goes to Hydra.

Nothing heavy is imported before the verb needs it: help and errors in the config come at once.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO, cast

from tl_experiments.errors import BAD_INPUT, INTERRUPTED, OK, SOME_FAILED, ConfigError, StorageError, UserError
from tl_experiments.interrupt import Cancelled, Detached, Interrupted
from tl_experiments.safe_text import plain

HELP = """\
tl: transfer learning experiments from the command line

  tl train ...      train one job, or with -m a sweep, and compare its arms
  tl pretrain ...   train a source model; its folder is then a backbone.weights
  tl tune ...       search each arm's settings with equal budgets, then compare the arms
  tl lr ...         find learning rates: a range test of each strategy, with a plot
  tl compare DIR    the table and the verdict of finished sweeps
  tl status DIR     how the jobs of a sweep stand, on this machine or on a cluster
  tl logs DIR [JOB] what jobs have said; without JOB, the end of what the failed ones said
  tl cancel DIR     end what runs of a sweep; the same command goes on with it later
  tl predict ...    the classes of new images, by a run or by the run that val chose
  tl evaluate ...   a run's metrics on another dataset
  tl export ...     a run's model for other programs: safetensors, torch.export, ONNX
  tl data ...       look at a dataset: tl data check, tl data preview
  tl sync DIR       enter finished runs in W&B and other trackers
  tl list GROUP     what there is to choose: tl list backbones 'vit*'
  tl cache ...      what runs share on disk: tl cache list, tl cache clear
  tl VERB --help    examples first

Start with:  tl train -m backbone=resnet18 freeze_strategy=feature_extraction,full,from_scratch seed=0,1,2
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``tl``; ends the process with 0, 1 (a job failed), 2 (bad config or data) or what
    a shell says of a signal that ended it: 130 for Ctrl-C, 143 for SIGTERM."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = any(re.fullmatch(r"\+?debug=(true|traceback)", argument, re.IGNORECASE) for argument in given)
    if sys.stdout is None:  # what Python makes of a closed one; the next file to be opened would take its place
        sys.stderr.write("error: standard output: closed -> redirect it, for example to /dev/null\n")
        sys.exit(SOME_FAILED)
    output = cast(TextIO, _Output(sys.stdout))
    try:
        with redirect_stdout(output):
            code = _dispatch(given)
            output.flush()  # here, where what fails can still be said
    except UserError as error:
        if debug:
            traceback.print_exc()
        if os.environ.get("RANK", "0") == "0":  # of several processes of torchrun one says it
            sys.stderr.write(f"error: {plain(str(error))}\n")
        code = error.exit_code
    except (Detached, Cancelled) as error:
        sys.stderr.write(f"{type(error).__name__.lower()}: {plain(str(error))}\n")
        code = error.exit_code
    except Interrupted as error:
        there = "from there" if error.where else "with what is not done"
        sys.stderr.write(f"interrupted: {error}: the same command again goes on {there}\n")
        code = error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the same command again goes on with the jobs that are not done\n")
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        code = OK
    with suppress(OSError, StorageError):  # after another error this one need not be said
        output.flush()
    sys.exit(code)


class _Output:
    """Standard output that says in one line why it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._writing():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._writing():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is left to be written would fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            what = f"cannot be written ({error.strerror})"
            raise StorageError("standard output", what, "make room, or write it elsewhere") from error


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return OK if arguments else BAD_INPUT
    if arguments[0] == "--version":
        from tl_experiments import __version__

        sys.stdout.write(f"tl_experiments {__version__}\n")
        return OK
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        from tl_experiments.config.typed import did_you_mean

        raise UserError(f"tl {verb}", "no such verb", did_you_mean(verb, VERBS))
    return VERBS[verb](verb, rest)


def _train(verb: str, arguments: list[str]) -> int:
    if any(argument in ("-h", "--help") for argument in arguments):
        from tl_experiments.help import verb_help

        sys.stdout.write(verb_help(verb))
        return OK
    import hydra
    from hydra.errors import HydraException

    from tl_experiments.commands.training import COMMANDS
    from tl_experiments.config.compose import conf_dir, open_mappings, translate
    from tl_experiments.sweeps.command import conditional

    _refuse_unknown_options(verb, arguments)
    command = COMMANDS[verb](verb, arguments)
    if verb == "tune" and not set(arguments) & {"--cfg", "-c", "--info", "-i"}:
        arguments = ["--multirun", *arguments]  # its values are searched; there is no single run
    sys.argv = [f"tl {verb}", *conditional(open_mappings(arguments))]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and we print one line
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(command)()
    except (HydraException, ValueError) as error:  # Hydra raises both for what a user can mistype
        raise translate(error) from error
    try:
        return command.execute()
    except HydraException as error:
        raise translate(error) from error


_OPTIONS = (
    *("--multirun", "--cfg", "--info", "--resolve", "--package", "--config-dir", "--config-name", "--config-path"),
    *("-m", "-c", "-i", "-p", "-cd", "-cn", "-cp"),
)


def _refuse_unknown_options(verb: str, arguments: Sequence[str]) -> None:
    """``--seed 3`` is easily typed; argparse would answer in a form of its own."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("-") and name not in _OPTIONS:
            key = name.lstrip("-")
            raise ConfigError(f"tl {verb} {name}", "no such option", f"config values have no dashes: {key}=...")


def _list(_verb: str, arguments: list[str]) -> int:
    from tl_experiments.help import listing

    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write("tl list [GROUP [PATTERN]]   e.g. tl list freeze_strategies, tl list backbones 'vit*'\n")
        return OK
    sys.stdout.write(listing(*arguments[:2]))
    return OK


def _module(verb: str, arguments: list[str]) -> int:
    """A verb of its own module in ``commands/``."""
    from importlib import import_module

    try:
        return import_module(f"tl_experiments.commands.{_MODULES[verb]}").main(arguments)
    except SystemExit as stop:  # argparse has printed the help
        return OK if stop.code in (0, None) else BAD_INPUT


_MODULES = {
    "compare": "comparing",
    "data": "datasets",
    "cache": "caching",
    "predict": "predicting",
    "evaluate": "evaluating",
    "export": "exporting",
    "sync": "syncing",
    "status": "status",
    "logs": "logs",
    "cancel": "cancelling",
}
VERBS: dict[str, Callable[[str, list[str]], int]] = {
    "train": _train,
    "pretrain": _train,
    "tune": _train,
    "lr": _train,
    **dict.fromkeys(_MODULES, _module),
    "list": _list,
}
