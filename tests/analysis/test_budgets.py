"""What an arm cost, who had more, and which arms no other beats at its price."""

import itertools

import numpy as np
import pytest

from tl_experiments.analysis.arms import group_arms
from tl_experiments.analysis.columns import compact_columns
from tl_experiments.analysis.comparison import compare_records
from tl_experiments.analysis.pareto import not_dominated


def rows_of(records):
    return {row.arm.freeze_strategy: row for row in compare_records(records).rows}


def tuned(make_record, *, factors=(0.3, 1.0, 3.0), seeds=3, arms=("full", "from_scratch")):
    """Each factor with seed 0, the best on val with the other seeds too: what tuning_seed=0 leaves."""
    for strategy, factor in itertools.product(arms, factors):
        for seed in range(seeds if factor == 1.0 else 1):
            yield make_record(
                strategy,
                seed,
                val=0.9 if factor == 1.0 else 0.99 - 0.2 * factor,
                settings={"optimizer.lr_factor": factor, "tuning_seed": 0},
            )


def test_the_budget_counts_all_trials(make_record):
    records = [
        make_record("full", seed, settings={"optimizer.lr_factor": factor}, wall_clock_s=2.0)
        for factor in (1.0, 3.0)
        for seed in range(3)
    ]
    (row,) = rows_of(records).values()
    assert (row.trials, row.runs, row.all_trials_epochs, row.all_trials_s) == (2, 6, 120, 12.0)


def test_trials_on_the_tuning_seed_alone_are_no_unequal_budget(make_record):
    comparison = compare_records(tuned(make_record))
    assert not [w for w in comparison.warnings if "Unequal" in w]
    assert [row.unequal for row in comparison.rows] == [(), ()]
    assert [(row.trials, row.runs, row.seeds) for row in comparison.rows] == [(3, 5, (0, 1, 2))] * 2
    assert comparison.notes == (
        "Trials were chosen on val with seed 0 alone (tuning_seed=0); the chosen ones ran on all seeds.",
    )


def test_the_chosen_trial_is_the_one_that_ran_all_seeds(make_record):
    """Also where its mean over all seeds is below what another trial reached on the tuning seed."""
    for arm in group_arms(tuned(make_record)):
        assert '"optimizer.lr_factor": "1"' in arm.chosen
        assert max(run.metrics["val"]["accuracy"] for trial in arm.trials.values() for run in trial) > 0.9


def test_an_arm_with_other_trials_is_marked(make_record):
    records = [*tuned(make_record), *tuned(make_record, factors=(1.0,), arms=("lp_ft",))]
    comparison = compare_records(records)
    assert {row.arm.freeze_strategy: row.unequal for row in comparison.rows} == {
        "full": (),
        "from_scratch": (),
        "lp_ft": ("trials",),
    }
    column = next(column for column in compact_columns(comparison.rows) if column.title == "trials")
    assert {row.arm.freeze_strategy: column.cell(row) for row in comparison.rows} == {
        "full": "3",
        "from_scratch": "3",
        "lp_ft": "1*",
    }
    assert "Unequal budgets: 1 trial for lp_ft; 3 trials for" in comparison.warnings[0]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_that_of_a_search_over_all_pairs(seed):
    rng = np.random.default_rng(seed)
    accuracy = rng.integers(0, 6, 12) / 6  # with ties
    costs = {name: rng.integers(0, 6, 12).astype(float) for name in ("seconds", "trained", "memory")}
    found = not_dominated(accuracy.tolist(), {name: cost.tolist() for name, cost in costs.items()})

    def beaten(arm, names):
        points = np.stack([accuracy, *(-costs[name] for name in names)], axis=1)
        return bool(((points >= points[arm]).all(1) & (points > points[arm]).any(1)).any())

    for arm, front in enumerate(found):
        expected = [name for name in costs if not beaten(arm, [name])]
        assert front == tuple(expected + ([] if beaten(arm, costs) else ["overall"]))


def test_a_row_says_where_it_is_not_dominated(make_record):
    arms = {"full": (0.95, 9.0, 9), "feature_extraction": (0.90, 1.0, 9), "from_scratch": (0.80, 9.0, 5)}
    records = [
        make_record(name, seed, test=test, wall_clock_s=seconds, peak_memory_bytes=memory)
        for name, (test, seconds, memory) in arms.items()
        for seed in range(3)
    ]
    fronts = {name: row.not_dominated for name, row in rows_of(records).items()}
    assert fronts == {
        "full": ("seconds", "trained", "memory", "overall"),
        "feature_extraction": ("seconds", "trained", "overall"),
        "from_scratch": ("memory", "overall"),
    }
