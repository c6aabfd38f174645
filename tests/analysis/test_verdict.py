import re

import numpy as np
import pytest
from scipy import stats

from tl_experiments.analysis.arms import group_arms
from tl_experiments.analysis.comparison import compare_records
from tl_experiments.analysis.statistics import estimate
from tl_experiments.analysis.verdict import decide


def sweep(make_record, **arms):
    """Strategy -> (val, test accuracies by seed)."""
    return [
        make_record(strategy, seed, val=val, test=test)
        for strategy, (val, tests) in arms.items()
        for seed, test in enumerate(tests)
    ]


def sentence(records):
    (verdict,) = compare_records(records).verdicts
    return verdict.sentence


def decision(records):
    arms = group_arms(records)
    return decide(arms, estimate(list(arms[0].by_pair("test", "accuracy").values())))


FULL = [0.960, 0.965, 0.961, 0.962]


def test_the_sentence_in_full(make_record):
    # The numbers are those of scipy.stats: ttest_rel and its confidence interval.
    records = sweep(
        make_record,
        full=(0.97, FULL),
        from_scratch=(0.93, [0.920, 0.927, 0.922, 0.920]),
        lp_ft=(0.96, [0.962, 0.960, 0.961, 0.957]),
        feature_extraction=(0.90, [0.900, 0.906, 0.901, 0.902]),
    )
    assert sentence(records) == (
        "Verdict: full (resnet10t) — chosen on val — reaches 0.962 [0.959, 0.965] test accuracy over 4 seeds; "
        "transfer helps: +0.040 [0.037, 0.042] against from_scratch (paired t-test, Holm, p<0.001). "
        "It is better than feature_extraction (+0.060, p<0.001). "
        "It is not distinguishable from lp_ft (+0.002, p=0.34). "
        "Negative transfer: feature_extraction \N{MINUS SIGN}0.020 [\N{MINUS SIGN}0.022, \N{MINUS SIGN}0.018]."
    )


def test_p_values_are_corrected_over_all_comparisons(make_record):
    others = {
        "from_scratch": (0.93, [0.91, 0.95, 0.94, 0.93]),
        "lp_ft": (0.96, [0.93, 0.95, 0.95, 0.96]),
        "bitfit": (0.95, [0.90, 0.95, 0.92, 0.96]),
    }
    raw = sorted(stats.ttest_rel(FULL, tests).pvalue for _, tests in others.values())
    corrected = np.maximum.accumulate([min(1, (3 - rank) * p) for rank, p in enumerate(raw)])
    ours = sorted(c.p_value for c in decision(sweep(make_record, full=(0.97, FULL), **others)).contrasts)
    assert ours == pytest.approx(corrected)


@pytest.mark.parametrize(
    ("control", "says"),
    [
        ([0.91, 0.92, 0.92, 0.91], "transfer helps: +0.0"),
        ([0.96, 0.96, 0.97, 0.96], "transfer is not shown to help: "),
        ([0.98, 0.985, 0.98, 0.983], "transfer hurts: \N{MINUS SIGN}0.0"),
    ],
)
def test_what_is_said_of_transfer(make_record, control, says):
    assert says in sentence(sweep(make_record, full=(0.97, FULL), from_scratch=(0.93, control)))


def test_a_control_that_wins_says_that_transfer_does_not_help(make_record):
    said = sentence(sweep(make_record, full=(0.90, [0.9] * 4), from_scratch=(0.97, FULL)))
    assert said.startswith("Verdict: from_scratch (resnet10t) — chosen on val — reaches 0.962")
    assert "; transfer does not help: from_scratch leads on val. It is better than full (+0.062, p<0.001)." in said


def test_val_and_test_that_disagree_are_said_to(make_record):
    records = sweep(make_record, full=(0.97, [0.90, 0.91, 0.90]), lp_ft=(0.96, [0.95, 0.962, 0.951]))
    assert "On test it is worse than lp_ft (\N{MINUS SIGN}0.051, p<0.001)." in sentence(records)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_3_seeds_are_never_better(make_record, n):
    records = sweep(make_record, full=(0.99, [0.99] * n), from_scratch=(0.5, [0.5] * n), lp_ft=(0.4, [0.4] * n))
    said = sentence(records)
    assert said.endswith(f"; too few seeds to tell (n={n}, 3 needed).")
    assert not re.search("better|helps|negative", said)
    assert [row.p_value for row in compare_records(records).rows] == [None] * 3


def test_shared_seeds_count_not_seeds(make_record):
    records = sweep(make_record, full=(0.97, FULL), lp_ft=(0.96, [0.9, 0.91, 0.9]))
    records += [make_record("from_scratch", seed, val=0.9, test=0.5) for seed in (0, 1, 8, 9)]
    said = sentence(records)
    assert "whether transfer helps: too few seeds to tell (n=2, 3 needed)" in said
    assert "It is better than lp_ft" in said
    records = sweep(make_record, full=(0.97, FULL), lp_ft=(0.96, [0.9]), from_scratch=(0.9, FULL))
    assert "Against lp_ft (n=1): too few seeds to tell, 3 needed." in sentence(records)


def test_identical_results_are_not_distinguishable(make_record):
    records = sweep(make_record, full=(0.97, FULL), from_scratch=(0.96, FULL))
    assert "transfer is not shown to help: 0.000 against from_scratch (paired t-test, Holm, p=1.00)" in sentence(
        records
    )


def test_without_a_control_nothing_is_said_of_transfer(make_record):
    said = sentence(sweep(make_record, full=(0.97, FULL)))
    assert said.endswith("over 4 seeds; whether transfer helps is not known: no from_scratch arm was run.")
    assert "chosen" not in said
    assert sentence(sweep(make_record, from_scratch=(0.97, FULL[:1]))) == (
        "Verdict: from_scratch (resnet10t) reaches 0.960 test accuracy over 1 seed; "
        "there is no other arm to compare it with."
    )


def test_one_verdict_a_dataset_and_backbones_named_where_they_differ(make_record):
    records = sweep(make_record, full=(0.97, FULL), from_scratch=(0.9, [0.9] * 4))
    vit = {"arm": {"dataset": "letters", "backbone": "vit"}, "settings": {"backbone.name": "vit"}}
    resnet = {"arm": {"dataset": "letters"}}
    records += [make_record("full", s, val=0.9, test=t, fingerprint="b", **vit) for s, t in enumerate(FULL)]
    records += [make_record("full", s, val=0.8, test=0.8, fingerprint="b", **resnet) for s in range(4)]
    digits, letters = compare_records(records).verdicts
    assert digits.sentence.startswith("Verdict on digits, 5 shots: full (resnet10t) — ")
    assert letters.sentence.startswith("Verdict on letters: full (vit) — ")
    assert "better than full (resnet10t) (+0.162" in letters.sentence


def simulate(make_record, rng, gap, seeds):
    """Two arms under the same seeds; the spread of a paired difference is 2 points."""
    noise = rng.normal(0, 0.02 / np.sqrt(2), (2, 2, seeds))
    return [
        make_record(strategy, seed, val=mean + noise[0, arm, seed], test=mean + noise[1, arm, seed])
        for arm, (strategy, mean) in enumerate((("full", 0.9 + gap), ("lp_ft", 0.9)))
        for seed in range(seeds)
    ]


def test_equal_arms_are_rarely_called_better(make_record):
    rng = np.random.default_rng(0)
    outcomes = [decision(simulate(make_record, rng, 0.0, 5)).contrasts[0].outcome for _ in range(200)]
    assert sum(outcome in ("better", "worse") for outcome in outcomes) <= 18


def test_a_planted_difference_of_3_points_is_found(make_record):
    rng = np.random.default_rng(0)
    found = [decision(simulate(make_record, rng, 0.03, 10)).contrasts[0].outcome == "better" for _ in range(100)]
    assert sum(found) >= 80
