"""From swept overrides to jobs: equal to Hydra's own way, faster, and with options that only some choices have."""

from __future__ import annotations

from unittest import mock

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tl_experiments.config.compose import conf_dir, plain_config
from tl_experiments.errors import ConfigError
from tl_experiments.sweeps.command import conditional
from tl_experiments.sweeps.expand import compose_jobs, expand
from tl_experiments.sweeps.jobs import make_job


@pytest.fixture
def loader():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def jobs_of(loader, *arguments, params=None):
    return compose_jobs(loader, "train", [], expand(loader, params or {}, arguments))


SWEEPS = [
    ["seed=0,1", "optimizer.lr_factor=0.3,1,3"],
    ["freeze_strategy=feature_extraction,full,from_scratch", "seed=range(3)", "trainer.max_epochs=7"],
    ["backbone=resnet18,vit_small", "optimizer=adamw,sgd", "optimizer.lr=0.1,1e-3", "trainer.precision=32-true"],
    ["experiment=digits_20_shots", "seed=1,2", "dataset.shots=5", "backbone.preprocessing.mean=[0.1,0.2,0.3]"],
    ["backbone.preprocessing={image_size: 64, mean: [0.5, 0.5, 0.5]}", "seed=1,2"],
    ["+backbone.kwargs.drop_rate=0.1,0.2", "seed=0,1"],
    ["++backbone.kwargs={drop_rate: 0.3}", "dataset=digits,letters"],
    ["output_dir='~/a b',\"c(d)\",plain", "seed=0,1"],
    ["name=a,b", "output_dir=${name}/${seed}", "seed=3"],
    ["tracker=[csv,wandb]", "tracker.wandb.project=x", "seed=0,1"],
    ["freeze_strategy=glob(f*)", "optimizer.betas=[0.9,0.99],[0.5,0.9]"],
]


@pytest.mark.parametrize("arguments", SWEEPS, ids=" ".join)
def test_equal_to_hydras_own_composition(loader, arguments):
    ours = [plain for _, plain in jobs_of(loader, *arguments)]
    theirs = [plain_config(hydra_compose("train", job)) for job in expand(loader, {}, arguments)]
    assert ours == theirs
    assert len(ours) > 1


def test_one_composition_per_choice_of_groups(loader):
    arguments = ["backbone=resnet18,vit_small", "freeze_strategy=full,from_scratch", "seed=range(10)"]
    with mock.patch.object(loader, "load_configuration", wraps=loader.load_configuration) as compositions:
        assert len(jobs_of(loader, *arguments)) == 40
    assert compositions.call_count == 4


def test_options_apply_to_the_choices_that_have_them(loader):
    jobs = jobs_of(loader, "freeze_strategy=feature_extraction,last_n_blocks,full", "freeze_strategy.n=2,4", "seed=0,1")
    kept = [tuple(o for o in overrides if not o.startswith("seed")) for overrides, _ in jobs]
    assert len(jobs) == 8
    assert set(kept) == {
        ("freeze_strategy=feature_extraction",),
        ("freeze_strategy=full",),
        ("freeze_strategy=last_n_blocks", "freeze_strategy.n=2"),
        ("freeze_strategy=last_n_blocks", "freeze_strategy.n=4"),
    }


def test_a_key_that_no_choice_has_is_an_error(loader):
    with pytest.raises(ConfigError, match=r"freeze_strategy.m: unknown key -> did you mean freeze_strategy.n"):
        jobs_of(loader, "freeze_strategy=full,last_n_blocks", "freeze_strategy.m=1,2")


def test_an_unknown_choice_among_many_is_named(loader):
    with pytest.raises(ConfigError, match=r"freeze_strategy: unknown choice 'ful' -> did you mean full\?"):
        jobs_of(loader, "freeze_strategy=full,ful")


def test_the_command_line_wins_over_an_experiments_sweep(loader):
    params = {"seed": "range(5)", "freeze_strategy": "full,from_scratch"}
    assert len(jobs_of(loader, params=params)) == 10
    assert len(jobs_of(loader, "seed=7", params=params)) == 2
    assert [o for o, _ in jobs_of(loader, "freeze_strategy=full", "seed=1,2", params=params)] == [
        ["seed=1", "freeze_strategy=full"],
        ["seed=2", "freeze_strategy=full"],
    ]


def test_experiments_are_not_swept(loader):
    with pytest.raises(ConfigError, match=r"experiment: swept, but each experiment has a sweep of its own"):
        expand(loader, {}, ["experiment=digits_5_shots,digits_20_shots"])


def test_intervals_are_refused(loader):
    with pytest.raises(ConfigError, match=r"optimizer.lr: an interval has no end of values"):
        expand(loader, {}, ["optimizer.lr=interval(0,1)"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["freeze_strategy=full,last_n_blocks", "freeze_strategy.n=2"], "freeze_strategy.n=choice(2)"),
        (["freeze_strategy=full,last_n_blocks", "freeze_strategy.n=2,4"], "freeze_strategy.n=2,4"),
        (["experiment=digits_5_shots", "freeze_strategy.n=2"], "freeze_strategy.n=choice(2)"),
        (["optimizer.betas=[0.9,0.99]"], "optimizer.betas=choice([0.9,0.99])"),
        (["freeze_strategy.blocks=[first],[last]"], "freeze_strategy.blocks=[first],[last]"),
        (["hydra.verbose=true"], "hydra.verbose=true"),
        (["dataset.shots=null"], "dataset.shots=null"),
        (["dataset.root='a b'"], "dataset.root=choice('a b')"),
    ],
)
def test_options_of_a_swept_group_wait_for_the_jobs(arguments, expected):
    assert conditional(["-m", *arguments])[-1] == expected
    assert conditional([*arguments, "--multirun"]) == conditional(["-m", *arguments])  # wherever it stands
    assert conditional(arguments) == arguments  # nothing is rewritten in a single run


def test_equal_jobs_are_one_job(loader):
    """The control arm does not depend on the weights, so two weight files share it."""
    composed = jobs_of(loader, "freeze_strategy=from_scratch", "backbone.weights=pretrained,random")
    assert len({make_job(*one).id for one in composed}) == 1


def test_a_list_applies_to_the_choices_that_have_it(loader):
    arguments = conditional(["-m", "freeze_strategy=full,surgical", "freeze_strategy.blocks=[first]"])[1:]
    jobs = compose_jobs(loader, "train", [], expand(loader, {}, arguments))
    assert [plain["freeze_strategy"].get("blocks") for _, plain in jobs] == [None, ["first"]]
