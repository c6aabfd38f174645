"""A study an arm: optuna's, in one journal that outlives the command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tl_experiments.config.schema import Tune
from tl_experiments.seeds import derive
from tl_experiments.sweeps.pruning import import_optuna, make_pruner

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

_DIRECTIONS = {"accuracy": "maximize", "seconds": "minimize"}


@dataclass(frozen=True)
class Proposal:
    """A trial that is to run.

    Args:
        id: In the journal.
        number: In its study, from 0.
        setting: As overrides.
    """

    id: int
    number: int
    setting: tuple[str, ...]


class Search:
    """The trials of one arm.

    Args:
        storage: Of all arms.
        name: Of the study.
        tune: What is searched, and how.
        seed: Of all trials, see ``_seeded``. All arms have the same, and so begin with the same trials.
        defaults: Values of the first trial.
        settle: From a trial of optuna to its setting; see ``Space.settle``.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        tune: Tune,
        seed: int,
        defaults: Mapping[str, Any],
        settle: Callable[[Any], tuple[str, ...]],
    ) -> None:
        self._optuna = import_optuna()
        self._tune, self._settle = tune, settle
        self.name, self._storage = name, storage
        self._settings: dict[int, tuple[str, ...]] = {}  # of trials that have ended
        self._study: Study = self._optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=_seeded(tune.sampler, seed),
            pruner=make_pruner(tune.pruner),
            directions=[_DIRECTIONS[one] for one in tune.objectives],
            load_if_exists=True,
        )
        if defaults and not self._study.get_trials(deepcopy=False):
            self._study.enqueue_trial(dict(defaults))

    @property
    def ended(self) -> list[FrozenTrial]:
        """Trials that were told, in order."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def propose(self) -> list[Proposal]:
        """The trials of the next round: what an earlier command proposed and did not end, then new ones."""
        running = [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]
        # one that was cut while it was proposed gets the rest of its setting
        found = [self._proposal(self._optuna.trial.Trial(self._study, trial._trial_id)) for trial in running]
        ended, parallel = len(self.ended), self._tune.parallel
        end_of_round = min(self._tune.trials, (ended // parallel + 1) * parallel)
        found += [self._proposal(self._study.ask()) for _ in range(ended + len(found), end_of_round)]
        return found

    def setting(self, trial: FrozenTrial) -> tuple[str, ...]:
        """Of a trial that has ended."""
        if trial.number not in self._settings:
            fixed = self._optuna.trial.FixedTrial(trial.params, number=trial.number)
            self._settings[trial.number] = self._settle(fixed)
        return self._settings[trial.number]

    def tell(self, proposal: Proposal, state: str, values: Sequence[float]) -> None:
        """What became of a trial.

        Args:
            proposal: From ``propose``.
            state: ``ok``, ``pruned``, or how it failed.
            values: One an objective, where it is ``ok``.
        """
        self._storage.set_trial_user_attr(proposal.id, "state", state)
        states = self._optuna.trial.TrialState
        if state == "ok":
            self._study.tell(proposal.number, list(values))
        elif state == "pruned":
            self._study.tell(proposal.number, state=states.PRUNED)
        elif len(self._tune.objectives) == 1:  # the worst there is, so that the search keeps away from it
            self._study.tell(proposal.number, 0.0)
        else:  # no seconds are the worst
            self._study.tell(proposal.number, state=states.FAIL)

    def front(self) -> list[FrozenTrial]:
        """Trials that no other beats in one objective without losing in another, the most accurate first."""
        place = self._tune.objectives.index("accuracy")
        return sorted(self._study.best_trials, key=lambda trial: -trial.values[place])

    def _proposal(self, trial: Any) -> Proposal:
        return Proposal(trial._trial_id, trial.number, self._settle(trial))


def _seeded(kind: str, seed: int) -> BaseSampler:
    """Optuna's, a new one for each draw, seeded with the number of the trial and the name of what is drawn alone.

    So a search that was cut goes on to the same trials, also where one was proposed in part.
    """
    from optuna.samplers import BaseSampler, RandomSampler, TPESampler

    def fresh(trial: FrozenTrial, *name: str) -> BaseSampler:
        draw = derive(seed, "trial", trial.number, *name) % 2**32
        if kind == "random":
            return RandomSampler(seed=draw)
        return TPESampler(seed=draw, constant_liar=True, warn_independent_sampling=False)

    class Seeded(BaseSampler):
        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return fresh(trial).infer_relative_search_space(study, trial)

        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            return fresh(trial).sample_relative(study, trial, search_space)

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            return fresh(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    return Seeded()
