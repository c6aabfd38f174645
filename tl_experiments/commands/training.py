"""What Hydra hands a composed command line to, one class a kind of verb: ``tl train``, ``pretrain``, ``tune``, ``lr``.

Nothing heavy is imported before the work begins.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tl_experiments import interrupt
from tl_experiments.errors import OK, SOME_FAILED, ConfigError
from tl_experiments.safe_text import plain, redacted_text

if TYPE_CHECKING:
    from tl_experiments.sweeps.jobs import Job
    from tl_experiments.sweeps.launched import Launched
    from tl_experiments.sweeps.sweep import Outcome
    from tl_experiments.sweeps.worker import RunJob


class TrainCommand:
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

    def expand(self, loader: Any, params: Mapping[str, str], arguments: Sequence[str]) -> list[list[str]]:
        """Called by our sweeper: the jobs that the swept values stand for, as lists of overrides."""
        from tl_experiments.sweeps.expand import expand

        return expand(loader, params, arguments)

    def sweep(self, loader: Any, config: Any, job_overrides: Sequence[Sequence[str]]) -> None:
        """Called by our launcher with one list of overrides a job."""
        self.execute = lambda: self._sweep(loader, config, job_overrides)

    def _single(self, composed: Any, overrides: list[str], params: list[str]) -> int:
        """One job."""
        from tl_experiments.config.compose import plain_config
        from tl_experiments.sweeps.jobs import make_job
        from tl_experiments.sweeps.launched import launched

        job = make_job(overrides, plain_config(composed))
        if (together := launched()) is not None:
            return self.run_together(job, overrides, together)
        if params:
            sys.stderr.write(f"note: one run; with -m the experiment's sweep: {shlex.join(params)}\n")
        return self._layout(job) if job.config.print_layout else self.run_one(job, overrides)

    def _layout(self, job: Job) -> int:
        from tl_experiments.training.run import layout

        sys.stdout.write(layout(job.config) + "\n")
        return OK

    def _sweep(self, loader: Any, config: Any, job_overrides: Sequence[Sequence[str]]) -> int:
        """All jobs, composed and checked before the first begins."""
        from tl_experiments.config.compose import swept_trackers
        from tl_experiments.sweeps.expand import compose_jobs
        from tl_experiments.sweeps.jobs import make_job
        from tl_experiments.sweeps.launched import launched
        from tl_experiments.sweeps.worker import start_logging

        if (together := launched()) is not None:
            raise ConfigError(
                f"tl {self.verb} -m",
                f"{together.by} started {together.world_size} processes, and a sweep is one that starts others",
                f"a command a job, without -m; or, without {together.by}, executor=local or executor=slurm",
            )
        start_logging()
        composed = compose_jobs(loader, self.verb, list(config.hydra.overrides.hydra), job_overrides)
        jobs = list({job.id: job for job in (make_job(*one) for one in composed)}.values())
        if any(job.config.print_layout for job in jobs):
            raise ConfigError(
                "print_layout", "true in a sweep, which has many layouts", "print it for one job, without -m"
            )
        if any(one[1]["tracker"] != composed[0][1]["tracker"] for one in composed):
            raise swept_trackers()
        return self.run_many(jobs, list(config.hydra.overrides.task))

    def run_one(self, job: Job, overrides: list[str]) -> int:
        """Train it in this process, or on several devices in some that it starts."""
        from tl_experiments.sweeps.worker import run_job, start_logging

        start_logging()
        if job.config.executor.name != "local" or job.config.trainer.name != "default":
            return self.run_many([job], overrides)
        return self._run_here(job, overrides, run_job)

    def run_together(self, job: Job, overrides: list[str], together: Launched) -> int:
        """Train it in this process and in others that run the same command."""
        from tl_experiments.sweeps.jobs import sweep_folder, without_secrets
        from tl_experiments.sweeps.tasks import Task
        from tl_experiments.sweeps.worker import start_logging

        together.check(job.config.trainer)
        if job.config.executor.name != "local":
            name = job.config.executor.name
            raise ConfigError(
                "executor",
                f"{name}, which starts processes itself, under {together.by}",
                f"start it without {together.by}",
            )
        if together.first:
            start_logging()
            show = job.config.print_layout
            run = together.run_job
            return together.lead(lambda: self._layout(job) if show else self._run_here(job, overrides, run))
        folder = sweep_folder([job], overrides)
        (job,) = without_secrets([job])
        with interrupt.installed(at_once=True):
            return together.take_part(Task((job,)), folder, job.config.executor.threads_per_job)

    def _run_here(self, job: Job, overrides: list[str], run: RunJob) -> int:
        from tl_experiments.sweeps.jobs import sweep_folder, without_secrets
        from tl_experiments.sweeps.lock import running_here
        from tl_experiments.sweeps.sweep import preview, run_single
        from tl_experiments.tracking.process import check_installed, following

        trackers = job.config.tracker.chosen()
        check_installed(trackers)
        folder = sweep_folder([job], overrides)
        (job,) = without_secrets([job])
        if job.config.dry_run:
            sys.stdout.write(preview([job], folder) + "\n")
            return OK
        with interrupt.installed(at_once=True), running_here(folder), following(folder, trackers):
            outcome = run_single(job, folder, self.line, run)
            self._show(outcome, compare=False)
        return self._name_failures(outcome)

    def run_many(self, jobs: Sequence[Job], overrides: list[str]) -> int:
        """Run those that are not done, each in a process of its own, and compare the arms."""
        from tl_experiments.analysis.arms import choose_trial
        from tl_experiments.sweeps.jobs import sweep_folder, without_secrets
        from tl_experiments.sweeps.lock import running_here
        from tl_experiments.sweeps.sweep import preview, run_sweep
        from tl_experiments.tracking.process import check_installed, following

        trackers = jobs[0].config.tracker.chosen()
        check_installed(trackers)
        folder = sweep_folder(jobs, overrides)
        if any(job.config.tuning_seed != jobs[0].config.tuning_seed for job in jobs):
            raise ConfigError("tuning_seed", "swept, but a sweep is tuned on one seed", "give one tuning_seed=")
        if any(job.config.dry_run for job in jobs):
            sys.stdout.write(preview(without_secrets(jobs), folder, choose_trial) + "\n")
            return OK
        with interrupt.installed(at_once=True), running_here(folder), following(folder, trackers):
            outcome = run_sweep(without_secrets(jobs), folder, self.line, choose_trial)
            self._show(outcome, compare=self.verb in ("train", "tune") and not jobs[0].config.debug.no_result)
        return self._name_failures(outcome)

    def _show(self, outcome: Outcome, compare: bool) -> None:
        if compare and outcome.ok:
            from tl_experiments.commands.comparing import show_comparison

            show_comparison(outcome.folder)
        elif not outcome.bad:
            again = "done before: " if not outcome.trained else ""
            sys.stdout.write(f"{again}{outcome.folder}\n")
            if self.verb == "pretrain":
                sys.stdout.write(f"use it with the same backbone options: backbone.weights={outcome.folder}\n")

    def _name_failures(self, outcome: Outcome) -> int:
        """A line each, by what tells the job apart, with its log and the way to run it again; returns the exit code."""
        for entry in outcome.bad:
            name = " ".join(text for text in entry.overrides if text not in outcome.common) or f"job {entry.id}"
            log = f"; see {outcome.folder / entry.log}" if entry.log and (outcome.folder / entry.log).exists() else ""
            again = "" if entry.state in ("interrupted", "skipped") else "; retry_failed=true runs it again"
            sys.stderr.write(plain(f"error: {name}: {entry.state}: {entry.cause}{log}{again}") + "\n")
        return SOME_FAILED if outcome.bad else OK


class TuneCommand(TrainCommand):
    """``tl tune``: the settings of each arm are searched, then its other seeds run with what val chose."""

    def expand(self, loader: Any, params: Mapping[str, str], arguments: Sequence[str]) -> list[list[str]]:
        """No jobs yet: the search proposes them."""
        from tl_experiments.sweeps.expand import read_overrides

        self.swept = read_overrides(loader, params, arguments)
        return []

    def _sweep(self, loader: Any, config: Any, _job_overrides: Sequence[Sequence[str]]) -> int:
        from tl_experiments.analysis.arms import choose_trial
        from tl_experiments.sweeps.expand import Composer
        from tl_experiments.sweeps.jobs import sweep_folder
        from tl_experiments.sweeps.lock import running_here
        from tl_experiments.sweeps.pruning import import_optuna
        from tl_experiments.sweeps.worker import start_logging
        from tl_experiments.tracking.process import check_installed, following
        from tl_experiments.tuning.search import in_journal, in_memory
        from tl_experiments.tuning.space import make_space

        start_logging()
        import_optuna()
        space = make_space(self.swept, Composer(loader, self.verb, list(config.hydra.overrides.hydra)))
        jobs = [arm.example for arm in space.arms]
        cfg = jobs[0].config
        if cfg.print_layout:
            raise ConfigError("print_layout", "true in a search, which has many layouts", "print it with tl train")
        trackers = cfg.tracker.chosen()
        check_installed(trackers)
        folder = sweep_folder(jobs, list(config.hydra.overrides.task))
        if cfg.dry_run:
            sys.stdout.write(in_memory(space, folder, self.line, choose_trial).preview() + "\n")
            return OK
        with interrupt.installed(at_once=True), running_here(folder), following(folder, trackers):
            tuning = in_journal(space, folder, self.line, choose_trial)
            outcome = tuning.run()
            sys.stdout.write(tuning.fronts())
            self._show(outcome, compare=not cfg.debug.no_result)
        return self._name_failures(outcome)


class RatesCommand(TrainCommand):
    """``tl lr``: a learning-rate range test of each job, one after the other, then their curves side by side."""

    def run_one(self, job: Job, overrides: list[str]) -> int:
        return self.run_many([job], overrides)

    def run_together(self, job: Job, overrides: list[str], together: Launched) -> int:
        raise ConfigError(
            "tl lr",
            f"is one process, but {together.by} started {together.world_size}",
            f"start it without {together.by}",
        )

    def run_many(self, jobs: Sequence[Job], overrides: list[str]) -> int:
        from tl_experiments.analysis.lr_curves import table, write_curves
        from tl_experiments.config.schema import LrConfig
        from tl_experiments.sweeps.jobs import sweep_folder
        from tl_experiments.training.lr_range import range_test
        from tl_experiments.training.preflight import check_data

        folder = sweep_folder(jobs, overrides)
        check_data((job.config for job in jobs), folder)
        curves = []
        for number, job in enumerate(jobs, start=1):
            assert isinstance(job.config, LrConfig)  # the verb's root config makes it one
            curve = range_test(job.config)
            curves.append(curve)
            sys.stderr.write(
                f"[{number}/{len(jobs)}] {plain(curve.arm['freeze_strategy'])} seed {curve.seed}: "
                f"{len(curve.losses)} steps up to {curve.learning_rates[-1]:.2g}\n"
            )
        data, picture = write_curves(curves, folder)
        sys.stdout.write(
            f"{table(curves)}\n\nrule: what optimizer.lr_factor multiplies; steepest: where the loss falls fastest;\n"
            "minimum/10: a tenth of the rate at which it is lowest. A good rate for a whole run lies\n"
            f"at the steepest point or some way below it.\nevery step: {data}\npicture: {picture}\n"
        )
        return OK


COMMANDS = {"train": TrainCommand, "pretrain": TrainCommand, "lr": RatesCommand, "tune": TuneCommand}
