"""``tl <verb>``: the verb is taken off here, the rest of a training verb's line goes to Hydra.

Nothing heavy is imported before the verb needs it: help and errors in the config come at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tl_experiments.errors import ConfigError, UserError
from tl_experiments.safe_text import redacted_text

if TYPE_CHECKING:
    from pathlib import Path

    from tl_experiments.sweeps.sweep import Outcome

HELP = """\
tl: transfer learning experiments from the command line

  tl train ...      train one job, or with -m a sweep, and compare its arms
  tl pretrain ...   train a source model; its folder is then a backbone.weights
  tl compare DIR    the table and the verdict of finished sweeps
  tl list GROUP     what there is to choose: tl list backbones 'vit*'
  tl VERB --help    examples first

Start with:  tl train -m backbone=resnet18 freeze_strategy=feature_extraction,full,from_scratch seed=0,1,2
"""

OK, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``tl``; ends the process with 0, 1 (a job failed), 2 (bad config or data) or 130 (interrupted)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = any(argument.strip().lower() == "debug=true" for argument in given)
    try:
        code = _dispatch(given)
    except UserError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {printable(str(error))}\n")
        code = error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the same command again goes on with the jobs that are not done\n")
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    sys.exit(code)


def printable(text: str) -> str:
    """Without control characters, which could rewrite the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


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

    from tl_experiments.config.compose import conf_dir, open_mappings, translate
    from tl_experiments.sweeps.command import conditional

    _refuse_unknown_options(verb, arguments)
    command = Command(verb, arguments)
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


class Command:
    """What Hydra calls: itself with the config of a single run, ``sweep`` with the jobs of a multirun.

    It only takes note; the work is done after Hydra has returned, so that Hydra's handling of errors is not in the way.
    """

    def __init__(self, verb: str, arguments: Sequence[str]) -> None:
        self.verb = verb
        self.line = redacted_text(shlex.join(["tl", verb, *arguments]))  # it is written down
        self.execute: Callable[[], int] = lambda: OK  # Hydra itself answered, for example --cfg

    def __call__(self, composed: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        overrides = list(hydra.overrides.task)
        params = [f"{key}={value}" for key, value in hydra.sweeper.params.items()]
        self.execute = lambda: self._single(composed, overrides, params)

    def sweep(self, loader: Any, config: Any, job_overrides: Sequence[Sequence[str]]) -> None:
        """Called by our launcher with one list of overrides a job."""
        self.execute = lambda: self._sweep(loader, config, job_overrides)

    def _single(self, composed: Any, overrides: list[str], params: list[str]) -> int:
        """Train one job in this process."""
        from tl_experiments.config.compose import plain_config
        from tl_experiments.sweeps.jobs import make_job, sweep_folder, without_secrets

        job = make_job(overrides, plain_config(composed))
        if params:
            sys.stderr.write(f"note: one run; with -m the experiment's sweep: {shlex.join(params)}\n")
        if job.config.print_layout:
            from tl_experiments.training.run import layout

            sys.stdout.write(layout(job.config) + "\n")
            return OK
        from tl_experiments.sweeps.sweep import run_single
        from tl_experiments.sweeps.worker import start_logging
        from tl_experiments.tracking.process import check_installed, following

        start_logging()
        trackers = job.config.tracker.chosen()
        check_installed(trackers)
        folder = sweep_folder([job], overrides)
        (job,) = without_secrets([job])
        with following(folder, trackers):
            outcome = run_single(job, folder, self.line)
            self._show(outcome, compare=False)
        return self._name_failures(outcome)

    def _sweep(self, loader: Any, config: Any, job_overrides: Sequence[Sequence[str]]) -> int:
        """Plan the jobs, run those that are not done, compare the arms."""
        from tl_experiments.config.compose import swept_trackers
        from tl_experiments.sweeps.expand import compose_jobs
        from tl_experiments.sweeps.jobs import make_job, sweep_folder, without_secrets
        from tl_experiments.sweeps.sweep import run_sweep
        from tl_experiments.sweeps.worker import start_logging
        from tl_experiments.tracking.process import check_installed, following

        start_logging()
        composed = compose_jobs(loader, self.verb, list(config.hydra.overrides.hydra), job_overrides)
        jobs = list({job.id: job for job in (make_job(*one) for one in composed)}.values())
        if any(job.config.print_layout for job in jobs):
            raise ConfigError(
                "print_layout", "true in a sweep, which has many layouts", "print it for one job, without -m"
            )
        if any(one[1]["tracker"] != composed[0][1]["tracker"] for one in composed):
            raise swept_trackers()
        trackers = jobs[0].config.tracker.chosen()
        check_installed(trackers)
        folder = sweep_folder(jobs, list(config.hydra.overrides.task))
        with following(folder, trackers):
            outcome = run_sweep(without_secrets(jobs), folder, self.line)
            self._show(outcome, compare=self.verb == "train")
        return self._name_failures(outcome)

    def _show(self, outcome: Outcome, compare: bool) -> None:
        if compare and outcome.ok:
            _show(outcome.folder)
        elif not outcome.bad:
            again = "done before: " if not outcome.trained else ""
            sys.stdout.write(f"{again}{outcome.folder}\n")
            if self.verb == "pretrain":
                sys.stdout.write(f"use it with the same backbone options: backbone.weights={outcome.folder}\n")

    def _name_failures(self, outcome: Outcome) -> int:
        """A line each, by what tells the job apart, with its log and the way to run it again; returns the exit code."""
        for entry in outcome.bad:
            name = " ".join(text for text in entry.overrides if text not in outcome.common) or f"job {entry.id}"
            log = f"; see {outcome.folder / entry.log}" if entry.log else ""
            again = "" if entry.state == "interrupted" else "; retry_failed=true runs it again"
            sys.stderr.write(printable(f"error: {name}: {entry.state}: {entry.cause}{log}{again}") + "\n")
        return SOME_FAILED if outcome.bad else OK


def _show(*folders: Path) -> None:
    from rich.console import Console

    from tl_experiments.analysis import compare, show

    show(compare(*folders), Console())


def _compare(_verb: str, arguments: list[str]) -> int:
    from pathlib import Path

    if not arguments or any(argument.startswith("-") for argument in arguments):
        sys.stdout.write(
            "tl compare DIR [DIR ...]   the table and the verdict of finished sweeps, e.g. outputs/digits_5_shots\n"
        )
        return OK if "--help" in arguments or "-h" in arguments else BAD_INPUT
    _show(*(Path(argument) for argument in arguments))
    return OK


def _list(_verb: str, arguments: list[str]) -> int:
    from tl_experiments.help import listing

    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write("tl list [GROUP [PATTERN]]   e.g. tl list freeze_strategies, tl list backbones 'vit*'\n")
        return OK
    sys.stdout.write(listing(*arguments[:2]))
    return OK


VERBS: dict[str, Callable[[str, list[str]], int]] = {
    "train": _train,
    "pretrain": _train,
    "compare": _compare,
    "list": _list,
}
