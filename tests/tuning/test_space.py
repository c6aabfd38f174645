"""What of a command line makes arms, what repeats a run, and what is searched."""

from __future__ import annotations

import re

import optuna
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tests.conftest import TINY
from tl_experiments.config.compose import conf_dir
from tl_experiments.errors import ConfigError
from tl_experiments.sweeps.expand import Composer, read_overrides
from tl_experiments.sweeps.jobs import make_job
from tl_experiments.tuning.space import make_space


@pytest.fixture
def space():
    """``space("freeze_strategy=full", ...)``: as ``tl tune`` reads it."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        yield lambda *arguments: make_space(
            read_overrides(loader, {}, [*TINY, *arguments]), Composer(loader, "tune", [])
        )


def settle(space, arm=0):
    """A random trial: its setting, and what optuna was asked for."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask()
    return space.settle(space.arms[arm], trial), trial.distributions


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr_factor=interval(0.5,2)", FloatDistribution(0.5, 2)),
        ("optimizer.lr_factor=interval(1,2)", FloatDistribution(1, 2)),
        ("optimizer.lr_factor=tag(log,interval(0.03,30))", FloatDistribution(0.03, 30, log=True)),
        ("optimizer.lr_factor=range(0.5,2,0.25)", FloatDistribution(0.5, 1.75, step=0.25)),
        ("trainer.max_epochs=int(interval(2,20))", IntDistribution(2, 20)),
        ("trainer.batch_size=tag(log,int(interval(8,256)))", IntDistribution(8, 256, log=True)),
        ("trainer.max_epochs=range(2,20,5)", IntDistribution(2, 17, step=5)),
    ],
)
def test_hydras_sweep_syntax_is_optunas_distribution(space, override, expected):
    key = override.partition("=")[0]
    assert settle(space(override))[1] == {key: expected}


def test_a_list_of_values_is_a_choice_and_one_value_is_none(space):
    found = settle(space("trainer.max_epochs=5,10", "optimizer.lr_factor=3", "optimizer.betas=[0.9,0.99],[0.5,0.9]"))[1]
    assert found == {
        "trainer.max_epochs": CategoricalDistribution(("trainer.max_epochs=5", "trainer.max_epochs=10")),
        "optimizer.betas": CategoricalDistribution(("optimizer.betas=[0.9,0.99]", "optimizer.betas=[0.5,0.9]")),
    }


def test_arms_are_what_the_comparison_calls_arms(space):
    made = space(
        "freeze_strategy=feature_extraction,last_n_blocks,from_scratch", "freeze_strategy.n=1,2", "head=linear,cosine",
        "seed=0,1,2", "backbone.weights=random", "optimizer.lr_factor=tag(log,interval(0.1,10))",
    )  # fmt: skip
    labels = [(arm.labels["freeze_strategy"], arm.labels["head"].partition("(")[0]) for arm in made.arms]
    strategies = ["feature_extraction", "last_n_blocks(n=1)", "last_n_blocks(n=2)", "from_scratch"]
    assert sorted(labels) == sorted((name, head) for name in strategies for head in ("linear", "cosine"))
    assert len({arm.name for arm in made.arms}) == 8
    assert (len(made.repeats), made.tuning_seed) == (3, 0)
    assert [one.key for one in made.dimensions] == ["optimizer.lr_factor"]


def test_an_option_of_an_arm_that_is_no_label_is_searched(space):
    made = space("freeze_strategy=discriminative", "freeze_strategy.base_lr.adamw=1e-4,1e-3", "seed=0")
    assert (len(made.arms), [one.key for one in made.dimensions]) == (1, ["freeze_strategy.base_lr.adamw"])


def test_options_of_a_searched_group_belong_to_the_choices_that_have_them(space):
    made = space(
        "optimizer=adamw,sgd", "optimizer.momentum=interval(0.5,0.9)", "optimizer.lr=tag(log,interval(1e-4,1))"
    )
    seen = set()
    for seed in range(10):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()
        setting = made.settle(made.arms[0], trial)
        seen.add((setting[0], tuple(sorted(trial.distributions))))
        made.jobs(made.arms[0].overrides, setting, tuning=True)  # composes
    assert seen == {
        ("optimizer=adamw", ("optimizer", "optimizer.lr")),
        ("optimizer=sgd", ("optimizer", "optimizer.lr", "optimizer.momentum")),
    }


def test_a_setting_can_be_typed_again_as_the_same_job(space):
    made = space("optimizer.lr_factor=tag(log,interval(0.03,30))", "trainer.max_epochs=int(interval(2,9))", "seed=4,5")
    setting, _ = settle(made)
    (tuning,) = made.jobs(made.arms[0].overrides, setting, tuning=True)
    (other,) = made.jobs(made.arms[0].overrides, setting, tuning=False)
    assert (tuning.config.seed, other.config.seed, other.config.tuning_seed) == (4, 5, 4)
    train = Composer(GlobalHydra.instance().config_loader(), "train", [])
    assert tuning.id == make_job(*train([*TINY, *setting, "seed=4"])).id
    assert re.search(r"optimizer.lr_factor=[\d.]{3,9}( |$)", " ".join(setting))


def test_the_first_trial_has_the_configs_own_values_where_they_are_inside(space):
    made = space(
        "freeze_strategy=full,feature_extraction", "optimizer.lr_factor=tag(log,interval(0.03,30))",
        "optimizer.weight_decay=tag(log,interval(0.1,1))", "trainer.max_epochs=5,10", "scheduler=cosine,constant",
    )  # fmt: skip
    assert [arm.defaults for arm in made.arms] == [
        {"optimizer.lr_factor": 1.0, "trainer.max_epochs": "trainer.max_epochs=10", "scheduler": "scheduler=cosine"}
    ] * 2


def test_folds_are_runs_of_one_trial(space):
    made = space(
        "dataset.folds=3", "dataset.shots=null", "dataset.fold=0,1,2", "seed=0,1", "optimizer.lr_factor=interval(1,2)"
    )
    setting, _ = settle(made)
    assert [job.config.dataset.fold for job in made.jobs(made.arms[0].overrides, setting, tuning=True)] == [0, 1, 2]
    assert {job.config.seed for job in made.jobs(made.arms[0].overrides, setting, tuning=False)} == {1}


@pytest.mark.parametrize("repeats", [("dataset.folds=3", "dataset.fold=0,1,2"), ("dataset.split_seed=0,1,2",)])
def test_a_trial_of_several_runs_is_not_pruned(space, repeats):
    arguments = (*repeats, "dataset.shots=null", "seed=0,1", "optimizer.lr_factor=interval(1,2)", "tune.pruner=median")
    said = "tune.pruner: median together with 3 runs a trial (folds, split or subset seeds) -> tune.pruner=none"
    with pytest.raises(ConfigError, match=re.escape(said)):
        space(*arguments)
    assert space("seed=0,1", "optimizer.lr_factor=interval(1,2)", "tune.pruner=median").arms


def test_another_space_is_another_search_and_more_seeds_or_trials_are_not(space):
    def name(*arguments):
        return space("freeze_strategy=full", *arguments).arms[0].name

    given = "optimizer.lr_factor=interval(1,2)"
    assert name(given, "seed=0,1", "tune.trials=40") == name(given, "seed=0", "executor.threads_per_job=1")
    others = [
        name("optimizer.lr_factor=interval(1,3)"),
        name(given, "tuning_seed=1", "seed=0,1"),
        name(given, "trainer.max_epochs=3"),
        name(given, "tune.objectives=[accuracy,seconds]"),
        name(given),
    ]
    assert len(set(others)) == 5


LR = "optimizer.lr_factor=interval(0.1,1)"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=0,1"], "tl tune: no setting to search -> add one, for example 'optimizer.lr_factor=tag"),
        (["optimizer.lr_factor=interval(3,1)"], "optimizer.lr_factor: from 3 to 1, expected a smaller number first"),
        (["optimizer.lr_factor=tag(log,interval(0,1))"], "from 0 on a logarithmic scale -> begin above 0"),
        (["trainer.max_epochs=tag(log,range(2,9,2))"], "a range with steps on a logarithmic scale"),
        (["trainer.max_epochs=interval(2,9)"], "an interval, expected whole numbers -> .*=int(interval(2,9))"),
        (["trainer.max_epochs=range(3)"], "trainer.max_epochs: got 0, expected 1 or more"),
        (
            ["optimizer.lr_facto=interval(0.1,1)"],
            "unknown key -> did you mean optimizer.lr_factor?",
        ),
        (["objective.label_smoothing=interval(0,2)"], "objective.label_smoothing: got 2.0, expected [0, 1)"),
        (
            ["freeze_strategy=last_n_blocks", "freeze_strategy.n=range(1,4)"],
            "a range of values, each of which would be an arm of its own -> list: freeze_strategy.n=1,2",
        ),
        ([LR, "tuning_seed=7", "seed=1,2"], "tuning_seed: 7, which is not among the seeds 1, 2 -> tuning_seed=1"),
        ([LR, "tune.trials=5,10"], "tune.trials: several values, but it changes no result -> give one tune.trials="),
        ([LR, "tracker=csv,wandb"], "tracker: several values, .* -> several at once: 'tracker=[csv,wandb]'"),
        ([LR, "name=a,b"], "name: several values, but it changes no result -> give one name="),
        ([LR, "tune.trials=0"], "tune.trials: got 0, expected 1 or more"),
        (
            [LR, "tune.objectives=[seconds]"],
            "got [seconds], expected [accuracy] or [accuracy,seconds]",
        ),
        ([LR, "tune.objectives=[accuracy,seconds]", "tune.pruner=median"], "tune.pruner: median together with two obj"),
        ([LR, "trainer=ddp", "trainer.devices=2", "tune.pruner=median"], "tune.pruner: median together with 2 devices"),
        ([LR, "experiment=few_labels,photos"], "experiment: swept, but each experiment has a sweep of its own"),
    ],
)
def test_what_cannot_be_searched_is_one_line(space, arguments, said):
    with pytest.raises(ConfigError, match=re.escape(said).replace(r"\.\*", ".*")) as error:
        space(*arguments)
    assert "\n" not in str(error.value)
