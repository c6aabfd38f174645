import dataclasses

import numpy as np
import pytest

from tl_experiments.analysis.arms import control_of, group_arms, trial_key
from tl_experiments.analysis.comparison import compare_records
from tl_experiments.analysis.settings import chosen_settings, short_names


def chosen_factors(records):
    arms = group_arms(records)
    return {
        arm.arm.freeze_strategy: settings.get("lr_factor")
        for arm, settings in zip(arms, (chosen_settings(arms)[arm.arm] for arm in arms), strict=True)
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 9),
        ("executor.jobs_per_device", 4),
        ("tracker.wandb", {"project": "x"}),
        ("name", "x"),
        ("output_dir", "/elsewhere"),
        ("trainer.num_workers", 8),
        ("trainer.eval_batch_size", 1),
        ("dataset.preload_max_bytes", 0),
        ("optimizer.lr_factor", 1),  # stored as 1.0
    ],
)
def test_what_changes_no_result_makes_no_trial(make_record, key, value):
    assert trial_key(make_record(settings={key: value})) == trial_key(make_record())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.lr_factor", 3.0),
        ("optimizer.name", "sgd"),
        ("scheduler.warmup_fraction", 0.2),
        ("trainer.max_epochs", 5),
        ("augmentation.name", "flip_crop"),
        ("objective.label_smoothing", 0.1),
        ("freeze_strategy.norm_stats", "frozen"),
        ("backbone.preprocessing.image_size", 64),
    ],
)
def test_what_changes_the_result_makes_a_trial(make_record, key, value):
    assert trial_key(make_record(settings={key: value})) != trial_key(make_record())


def trials(make_record, *each):
    """Each: factor -> (val accuracies by seed, nll)."""
    return [
        make_record(seed=seed, val=val, nll=nll, settings={"optimizer.lr_factor": factor})
        for factor, vals, nll in each
        for seed, val in enumerate(vals)
    ]


def test_the_best_mean_on_val_is_chosen(make_record):
    records = trials(make_record, (0.3, [0.8, 0.8], 0.1), (1.0, [0.7, 0.95], 0.9), (3.0, [0.6, 0.99], 0.1))
    assert chosen_factors(records) == {"full": "1"}


def test_a_tie_goes_to_the_lower_nll_then_to_the_smaller_key(make_record):
    assert chosen_factors(trials(make_record, (0.3, [0.8], 0.5), (1.0, [0.8], 0.4))) == {"full": "1"}
    assert chosen_factors(trials(make_record, (1.0, [0.8], 0.4), (0.3, [0.8], 0.4))) == {"full": "0.3"}
    # 0.1 + 0.2 + 0.3 sums to another last bit than 0.3 + 0.2 + 0.1
    records = trials(make_record, (0.3, [0.1, 0.2, 0.3], 0.5), (1.0, [0.3, 0.2, 0.1], 0.4))
    assert chosen_factors(records) == {"full": "1"}


def test_a_trial_that_lost_a_seed_is_not_chosen_over_a_complete_one(make_record):
    records = trials(make_record, (0.3, [0.8, 0.8, 0.8], 0.5), (1.0, [0.99, 0.99], 0.1))
    assert chosen_factors(records) == {"full": "0.3"}


def test_an_arm_with_too_few_seeds_is_not_recommended_over_one_with_enough(make_record):
    records = [make_record("full", seed, val=0.8) for seed in range(3)]
    records += [make_record("last_n_blocks(n=2)", 0, val=0.99)]
    assert [arm.arm.freeze_strategy for arm in group_arms(records)] == ["full", "last_n_blocks(n=2)"]


def test_no_choice_looks_at_test(make_sweep):
    records = make_sweep({"full": 0.95, "last_n_blocks(n=2)": 0.949, "from_scratch": 0.9}, factors=(0.3, 1.0, 3.0))
    rng = np.random.default_rng(1)
    for _ in range(20):
        noisy = [
            dataclasses.replace(
                record,
                metrics={
                    "val": record.metrics["val"],
                    "test": {name: float(rng.uniform()) for name in record.metrics["test"]},
                },
            )
            for record in records
        ]
        assert [arm.chosen for arm in group_arms(noisy)] == [arm.chosen for arm in group_arms(records)]
        one, two = compare_records(noisy), compare_records(records)
        assert one.verdicts[0].recommended == two.verdicts[0].recommended
        assert [(row.arm, row.settings) for row in one.rows] == [(row.arm, row.settings) for row in two.rows]


def test_the_order_of_the_records_changes_nothing(make_sweep):
    records = make_sweep({"full": 0.95, "from_scratch": 0.9}, factors=(0.3, 1.0))
    assert compare_records(records) == compare_records(records[::-1])


@pytest.mark.parametrize(
    ("label", "one", "two"),
    [
        ("dataset", {"fingerprint": "aaaaaaaa"}, {"fingerprint": "bbbbbbbb"}),
        ("backbone", {"weights": {"sha256": "aaaaaaaa"}}, {"weights": {"sha256": "bbbbbbbb"}}),
    ],
)
def test_one_name_for_two_contents_is_told_apart(make_record, label, one, two):
    """A folder whose images were replaced, a weights file that was made again: never averaged."""
    records = [make_record(seed=seed, **content) for content in (one, two) for seed in (0, 1)]
    arms = group_arms(records)
    name = records[0].arm[label]
    assert [getattr(arm.arm, label) for arm in arms] == [f"{name} #aaaaaa", f"{name} #bbbbbb"]
    assert [arm.seeds for arm in arms] == [(0, 1), (0, 1)]
    (alone,) = group_arms(records[:2])
    assert getattr(alone.arm, label) == name


def test_runs_without_weights_are_no_second_content(make_record):
    """The control has no file; its pretrained sibling keeps its plain name beside it."""
    records = [
        make_record("full", weights={"sha256": "aaaaaaaa"}),
        make_record("from_scratch", weights={"sha256": None}),
    ]
    assert {arm.arm.backbone for arm in group_arms(records)} == {"resnet10t"}


def test_one_file_under_two_paths_is_one_trial(make_record):
    paths = ["a/model.pth", "/there/a/model.pth"]
    records = [
        make_record(seed=s, weights={"sha256": "a"}, settings={"backbone.weights": p}) for s, p in enumerate(paths)
    ]
    (arm,) = group_arms(records)
    assert (len(arm.trials), arm.seeds) == (1, (0, 1))


def test_a_run_that_is_there_twice_counts_once(make_record):
    (arm,) = group_arms([make_record(seed=0, val=0.9), make_record(seed=0, val=0.1), make_record(seed=1, val=0.8)])
    assert (arm.seeds, arm.mean("val", "accuracy")) == ((0, 1), pytest.approx(0.85))


def test_the_control_has_the_same_architecture_and_head_whatever_its_weights(make_record):
    pretrained = make_record("full", arm={"backbone": "resnet10t, outputs/letters"})
    control = make_record("from_scratch")
    elsewhere = [
        make_record("from_scratch", arm={"backbone": "vit"}, settings={"backbone.name": "vit"}, val=0.99),
        make_record("from_scratch", arm={"head": "mlp"}, val=0.99),
    ]
    arms = group_arms([pretrained, control, *elsewhere])
    arm = next(arm for arm in arms if arm.arm.backbone == "resnet10t, outputs/letters")
    assert control_of(arm, arms).runs == (control,)


def test_settings_show_only_what_differs(make_record):
    records = [
        make_record("full", settings={"optimizer.name": "sgd", "optimizer.lr_factor": 3.0}),
        make_record("from_scratch", settings={"optimizer.lr_factor": 1.0}),
    ]
    settings = {arm.freeze_strategy: chosen for arm, chosen in chosen_settings(group_arms(records)).items()}
    assert settings == {
        "full": {"lr_factor": "3", "optimizer": "sgd"},
        "from_scratch": {"lr_factor": "1", "optimizer": "adamw"},
    }


def test_a_setting_of_the_strategy_shows_where_the_label_hides_it(make_record):
    records = [make_record(settings={"freeze_strategy.norm_stats": value}) for value in ("update", "frozen")]
    (settings,) = chosen_settings(group_arms(records)).values()
    assert settings.keys() == {"norm_stats"}


def test_options_of_another_choice_are_not_shown(make_record):
    """``alpha`` says nothing where only one of the two augmentations has it."""
    none, weak, strong = (
        make_record(settings={"augmentation.name": name} | ({"augmentation.alpha": alpha} if alpha else {}))
        for name, alpha in (("none", None), ("mixup", 0.2), ("mixup", 0.4))
    )
    (settings,) = chosen_settings(group_arms([none, weak])).values()
    assert settings.keys() == {"augmentation"}
    arms = group_arms([none, weak, strong])
    shown = {key for arm in arms for key in chosen_settings(arms)[arm.arm]}
    assert shown == ({"augmentation", "alpha"} if "mixup" in arms[0].chosen else {"augmentation"})


def test_an_optimizer_of_timm_goes_by_its_own_name(make_record):
    records = [
        make_record(settings={"optimizer.name": "adamw"}),
        make_record(settings={"optimizer.name": "timm", "optimizer.algorithm": "lamb"}),
    ]
    for record in records:
        arms = group_arms([record, make_record(settings={"optimizer.name": "sgd"})])
        (shown,) = chosen_settings(arms).values()
        assert shown["optimizer"] in ("adamw", "lamb", "sgd")


def test_names_that_would_be_equal_stay_whole():
    assert short_names(["optimizer.lr", "optimizer.name", "a.p", "b.p"]) == {
        "optimizer.lr": "lr",
        "optimizer.name": "optimizer",
        "a.p": "a.p",
        "b.p": "b.p",
    }
