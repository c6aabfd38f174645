"""From the overrides of ``tl tune`` to arms, seeds and what is searched for each arm."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.types import Override

from tl_experiments.config.schema import TuneConfig
from tl_experiments.errors import ConfigError
from tl_experiments.records import NOT_IN_THE_RESULT
from tl_experiments.sweeps.expand import Composer, values
from tl_experiments.sweeps.jobs import Job, make_job
from tl_experiments.training.identity import arm
from tl_experiments.tuning.dimensions import Choices, Dimension, Interval, Suggester, dimension

_REPEATS = ("seed", "dataset.fold", "dataset.split_seed", "dataset.subset_seed")
_ARM_GROUPS = ("dataset", "backbone", "head", "freeze_strategy")
_CONTENTS = ("dataset.root", "dataset.path", "dataset.repo", "backbone.weights")  # never settings to choose from


@dataclass(frozen=True)
class SearchedArm:
    """What is compared with others, each at the best setting that its search found.

    Args:
        name: Of its search; another for another space, so that trials of different searches do not mix.
        labels: As of ``identity.arm``.
        overrides: That make it.
        defaults: The config's own values, as far as the search could find them: its first trial.
        example: A job of it.
    """

    name: str
    labels: Mapping[str, str]
    overrides: tuple[str, ...]
    defaults: Mapping[str, Any]
    example: Job


@dataclass(frozen=True)
class Space:
    """The search of one command.

    Args:
        arms: Each with a search of its own.
        dimensions: Of the search; an arm whose config lacks one goes without.
        repeats: Overrides of seed, fold and split seeds, one tuple a run of a setting.
        tuning_seed: Trials run with this one.
        composer: Of jobs.
    """

    arms: tuple[SearchedArm, ...]
    dimensions: tuple[Dimension, ...]
    repeats: tuple[tuple[str, ...], ...]
    tuning_seed: int
    composer: Composer

    def settle(self, arm: SearchedArm, trial: Suggester) -> tuple[str, ...]:
        """The setting of a trial, as overrides; what it does not know yet is proposed.

        Choices of groups come first: they decide which options there are.
        """
        groups = [one for one in self.dimensions if self.composer.is_group(one.key)]
        options = [one for one in self.dimensions if one not in groups]
        chosen = [one.suggest(trial) for one in groups]
        there, _ = self.composer([*arm.overrides, *chosen, *(one.ends[0] for one in options)])
        return (*chosen, *(one.suggest(trial) for one in options if one.ends[0] in there))

    def jobs(self, overrides: Sequence[str], setting: Sequence[str], *, tuning: bool) -> list[Job]:
        """The runs of a setting, each job once.

        Args:
            overrides: Of its arm.
            setting: From ``settle``.
            tuning: Those with the tuning seed, or those with the other seeds.
        """
        found: dict[str, Job] = {}
        for repeat in self.repeats:
            job = make_job(*self.composer([*overrides, *setting, *repeat]))
            seed = None if tuning else self.tuning_seed
            if (job.config.seed == self.tuning_seed) == tuning:
                found[job.id] = replace(job, config=replace(job.config, tuning_seed=seed))
        return list(found.values())


def make_space(overrides: Mapping[str, Override], composer: Composer) -> Space:
    """Divide the overrides of a command: what makes arms, what repeats a run, what is searched.

    Raises:
        ConfigError: There is nothing to search, a dimension that would make arms, or anything wrong with a config.
    """
    kinds = {key: dimension(override) for key, override in overrides.items()}
    fixed = [values(overrides[key])[0] for key, found in kinds.items() if found is None]
    found = {key: one for key, one in kinds.items() if one is not None}
    for key in found:
        _check_effect(key)
    repeated = {key: _listed(one) for key, one in found.items() if key in _REPEATS}
    listed = {key: _listed(one) for key, one in found.items() if key in (*_ARM_GROUPS, *_CONTENTS)}
    unclear = {
        key: one
        for key, one in found.items()
        if key.partition(".")[0] in _ARM_GROUPS and key not in repeated and key not in listed
    }
    with _hints(found):
        first = [one.ends[0] for key, one in found.items() if key not in listed]
        for combination in itertools.product(*listed.values()):
            for key, one in unclear.items():
                if _tells_arms_apart(composer, [*fixed, *combination, *first], one):
                    listed[key] = _listed(one)
        dimensions = tuple(one for key, one in found.items() if key not in listed and key not in repeated)
        if not dimensions:
            fix = "add one, for example 'optimizer.lr_factor=tag(log,interval(0.1,10))'"
            raise ConfigError("tl tune", "no setting to search", fix)
        repeats = tuple(itertools.product(*repeated.values()))
        given = [(*fixed, *one) for one in itertools.product(*listed.values())]
        seed = _tuning_seed([*given[0], *first], repeats, composer)
        space = Space((), dimensions, repeats, seed, composer)
        space = replace(space, arms=tuple(_arms(given, space)))
    composer.check_keys()
    return space


@contextmanager
def _hints(found: Mapping[str, Dimension]) -> Iterator[None]:
    """What the config says of a value is said of the dimension where that is of the wrong kind."""
    try:
        yield
    except ConfigError as error:
        one = found.get(error.thing)
        if not isinstance(one, Interval) or "expected a whole number" not in error.what:
            raise
        fix = f"{one.key}=int(interval({one.low:g},{one.high:g}))"
        raise ConfigError(one.key, "an interval, expected whole numbers", fix) from None


def _check_effect(key: str) -> None:
    if {key, key.partition(".")[0], f"{key}.name"} & NOT_IN_THE_RESULT:
        fix = "several at once: 'tracker=[csv,wandb]'" if key == "tracker" else f"give one {key}="
        raise ConfigError(key, "several values, but it changes no result", fix)


def _listed(one: Dimension) -> tuple[str, ...]:
    if isinstance(one, Choices):
        return one.overrides
    raise ConfigError(one.key, "a range of values, each of which would be an arm of its own", f"list: {one.key}=1,2")


def _tells_arms_apart(composer: Composer, overrides: Sequence[str], one: Dimension) -> bool:
    """Whether values of an option are arms, as those of ``freeze_strategy.n`` are."""
    kept, _ = composer([*overrides, one.ends[0]])
    if one.ends[0] not in kept:
        return False
    labels = {tuple(arm(make_job(*composer([*overrides, end])).config).values()) for end in one.ends}
    return len(labels) > 1


def _arms(given: Sequence[tuple[str, ...]], space: Space) -> Iterator[SearchedArm]:
    """Each arm once, the control of two files of weights too, after all ends of its dimensions have composed."""
    seen = set()
    for overrides in given:
        lowest = [one.ends[0] for one in space.dimensions]
        (example, *_) = runs = space.jobs(overrides, lowest, tuning=True)
        if example.id in seen:
            continue
        assert isinstance(example.config, TuneConfig)  # the verb's root config makes it one
        tune = example.config.tune
        if tune.pruner != "none" and len(runs) > 1:  # a trial has one val accuracy at each validation
            what = f"{tune.pruner} together with {len(runs)} runs a trial (folds, split or subset seeds)"
            raise ConfigError("tune.pruner", what, "tune.pruner=none")
        seen.add(example.id)
        there = [one for one in space.dimensions if one.ends[0] in example.overrides]
        for end in (end for one in there for end in one.ends[1:]):
            space.jobs(overrides, [*lowest, end], tuning=True)  # raises for what is out of range
        _, plain = space.composer(overrides)
        defaults = {one.key: point for one in there if (point := one.point(_value(plain, one.key))) is not None}
        labels = arm(example.config)
        content = [[job.id for job in runs], space.dimensions, tune.objectives]
        digest = hashlib.sha256(repr(content).encode()).hexdigest()[:8]
        yield SearchedArm(f"{', '.join(labels.values())} {digest}", labels, overrides, defaults, example)


def _value(plain: Mapping[str, Any], key: str) -> Any:
    """At the dotted key; of a group the name of its choice."""
    node: Any = plain
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node.get("name") if isinstance(node, Mapping) else node


def _tuning_seed(overrides: Sequence[str], repeats: Sequence[Sequence[str]], composer: Composer) -> int:
    """``tuning_seed``, or the first of the seeds."""
    configs = [make_job(*composer([*overrides, *repeat])).config for repeat in repeats]
    given, seeds = configs[0].tuning_seed, list(dict.fromkeys(config.seed for config in configs))
    if given is not None and given not in seeds:
        known = ", ".join(map(str, seeds))
        raise ConfigError("tuning_seed", f"{given}, which is not among the seeds {known}", f"tuning_seed={seeds[0]}")
    return seeds[0] if given is None else given
