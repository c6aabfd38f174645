"""Trials of a search that end early: a run's process reports to the search's journal, and asks whether to go on."""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tl_experiments.config.schema import TuneConfig
from tl_experiments.errors import ConfigError, UserError
from tl_experiments.records import storing
from tl_experiments.sweeps.jobs import Job
from tl_experiments.training.groups import Judge, unjudged

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import JournalStorage

STUDY_FILE = "study.journal"  # in the sweep's folder: the trials of all arms
_GRACE_S = 15  # after which a writer that waits takes the lock, which is held while a line is written, for nobody's
_BEHIND = {
    "median": "below the median of the other trials at this point",
    "hyperband": "not among the best of its bracket at this point",
}


def import_optuna() -> ModuleType:
    """The library, quiet.

    Raises:
        ConfigError: It is missing, or too old.
    """
    try:
        optuna = importlib.import_module("optuna")
        importlib.import_module("optuna.storages.journal")
    except ModuleNotFoundError as error:
        what = f"{error.name} is not installed, or older than optuna 4"
        raise ConfigError("tl tune", what, "pip install 'tl-experiments[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    return optuna


def open_journal(folder: Path, *, mend: bool = False) -> JournalStorage:
    """The trials of a sweep, whose folder is there. Several processes may write, also over NFS; there is no database.

    Args:
        folder: Of the sweep.
        mend: Cut off the unfinished last line that a kill or a full disk left, which what is written next would join.

    Raises:
        UserError: The file is damaged.
    """
    import_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path = folder / STUDY_FILE
    lock = JournalFileOpenLock(str(path), _GRACE_S)
    if mend and path.exists():
        with storing(path):
            lock.acquire()  # a run that goes on without its command may report now
        try:
            if not (content := path.read_bytes()).endswith(b"\n"):
                os.truncate(path, content.rfind(b"\n") + 1)
        finally:
            lock.release()
    try:
        return JournalStorage(JournalFileBackend(str(path), lock))
    except (ValueError, KeyError) as error:
        raise UserError(
            str(path), f"cannot be read ({error})", "choose another name=, or move the folder away"
        ) from None


def make_pruner(name: str) -> BasePruner:
    """Optuna's, by the name in the config; steps are validations."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    # The first validation may come before the first step, when all trials of an arm are equal
    match name:
        case "median":
            return MedianPruner(n_warmup_steps=2)
        case "hyperband":
            return HyperbandPruner(min_resource=2)
        case _:
            return NopPruner()


def judge_of(job: Job, folder: Path) -> Judge:
    """What a run asks after each validation; reports to the journal in the sweep's ``folder``."""
    if job.trial is None:
        return unjudged
    assert isinstance(job.config, TuneConfig)
    optuna, pruner = import_optuna(), job.config.tune.pruner
    study = optuna.load_study(
        study_name=job.trial.study,
        storage=open_journal(folder),
        sampler=optuna.samplers.RandomSampler(),  # it proposes nothing here
        pruner=make_pruner(pruner),
    )
    trial: Any = optuna.trial.Trial(study, job.trial.id)
    reported = study.trials[trial.number].intermediate_values  # by an earlier turn of the run

    def judge(validations: int, accuracy: float) -> str | None:
        if validations not in reported:
            trial.report(accuracy, validations)
        return _BEHIND[pruner] if trial.should_prune() else None

    return judge
