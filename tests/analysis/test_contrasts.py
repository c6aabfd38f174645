"""Arms over the runs that both did: pairs, folds, corrections, what is said where tests disagree."""

import itertools
import re

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from tl_experiments.analysis.arms import Pair, group_arms, pair_of
from tl_experiments.analysis.comparison import compare_records
from tl_experiments.analysis.images import Hits
from tl_experiments.analysis.statistics import holm

FULL = [0.960, 0.965, 0.961, 0.962, 0.966, 0.964, 0.960]


def arms(make_record, settings=lambda index: {}, **tests):
    return [
        make_record(strategy, seed, val=0.9 + sum(values) / 1e4, test=test, settings=settings(seed))
        for strategy, values in tests.items()
        for seed, test in enumerate(values)
    ]


def folds(make_record, means, *, k=5, seeds=(0, 1, 2), split_seeds=(0,), rng=0):
    rng = np.random.default_rng(rng)
    spread = {(fold, split): rng.normal(0, 0.03) for fold in range(k) for split in split_seeds}
    return [
        make_record(
            strategy,
            seed,
            val=mean,
            test=mean + spread[fold, split] + rng.normal(0, 0.005),
            fingerprint=f"{fold}{split}" * 6,  # of a split: it differs between folds
            settings={"dataset.folds": k, "dataset.fold": fold, "dataset.split_seed": split},
        )
        for strategy, mean in means.items()
        for fold in range(k)
        for split in split_seeds
        for seed in seeds
    ]


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_that_of_statsmodels(seed):
    p_values = np.random.default_rng(seed).random(seed + 1) ** 3
    assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_every_two_arms_are_tested_and_corrected_twice(make_record):
    rng = np.random.default_rng(0)
    means = {"full": 0.95, "lp_ft": 0.94, "bitfit": 0.93}
    tests = {name: (mean + rng.normal(0, 0.01, 6)).tolist() for name, mean in means.items()}
    comparison = compare_records(arms(make_record, **tests))
    assert [(c.first.freeze_strategy, c.second.freeze_strategy) for c in comparison.contrasts] == [
        ("full", "lp_ft"),
        ("full", "bitfit"),
        ("lp_ft", "bitfit"),
    ]
    raw = [
        stats.ttest_rel(tests[c.first.freeze_strategy], tests[c.second.freeze_strategy]).pvalue
        for c in comparison.contrasts
    ]
    assert [c.p_value for c in comparison.contrasts] == pytest.approx(raw)
    assert [c.p_holm for c in comparison.contrasts[:2]] == pytest.approx(multipletests(raw[:2], method="holm")[1])
    assert comparison.contrasts[2].p_holm is None
    assert [c.p_holm_all for c in comparison.contrasts] == pytest.approx(multipletests(raw, method="holm")[1])
    assert [c.p_holm for c in comparison.contrasts[:2]] == [row.p_value for row in comparison.rows[1:]]
    for c in comparison.contrasts:
        one, two = (np.array(tests[arm.freeze_strategy]) for arm in (c.first, c.second))
        assert c.wilcoxon_p == pytest.approx(stats.wilcoxon(one, two, method="exact").pvalue)
        assert (c.seeds, c.runs, c.primary, c.images) == (6, 6, "paired t-test", None)


def test_the_pair_of_a_run(make_record):
    assert pair_of(make_record(seed=3)) == Pair(3, 0, 0, 3)  # a record from before there were folds
    settings = {"dataset.fold": 2, "dataset.split_seed": 7}
    assert pair_of(make_record(seed=3, settings=settings)) == Pair(3, 2, 7, 3)
    of_subset = {**settings, "dataset.subset_seed": 5}
    assert pair_of(make_record(seed=3, settings=of_subset)) == Pair(3, 2, 7, 5)
    whole = {**of_subset, "dataset.shots": None}
    assert pair_of(make_record(seed=3, settings=whole)) == Pair(3, 2, 7, 3)  # there is no subset to draw
    fraction = {**whole, "dataset.label_fraction": 0.1}
    assert pair_of(make_record(seed=3, settings=fraction)) == Pair(3, 2, 7, 5)


def subsets(make_record, seeds, subset_seeds, **means):
    rng = np.random.default_rng(0)
    luck = {subset: rng.normal(0, 0.03) for subset in subset_seeds}
    return [
        make_record(
            strategy,
            seed,
            val=mean,
            test=mean + luck[subset] * (strategy == "full") + rng.normal(0, 0.002),
            settings={"dataset.subset_seed": subset},
        )
        for strategy, mean in means.items()
        for subset in subset_seeds
        for seed in seeds
    ]


def test_label_subsets_are_repetitions_and_no_trials(make_record):
    (arm,) = group_arms(subsets(make_record, range(2), range(4), full=0.9))
    assert (len(arm.trials), len(arm.runs), arm.seeds) == (1, 8, (0, 1))
    (arm,) = group_arms([make_record(seed=seed) for seed in range(3)] + subsets(make_record, (0, 1), (0, 1), full=0.9))
    assert (len(arm.trials), len(arm.runs)) == (
        1,
        5,
    )  # seed 0 of its own subset, and subset_seed=0, are the same labels


def test_runs_that_share_a_label_subset_are_no_evidence_of_their_own(make_record):
    records = subsets(make_record, range(5), range(3), full=0.95, from_scratch=0.94)
    (contrast,) = compare_records(records).contrasts
    by = {
        (r.arm["freeze_strategy"], r.config["dataset"]["subset_seed"], r.seed): r.metrics["test"]["accuracy"]
        for r in records
    }
    one, two = (
        [np.mean([by[name, subset, seed] for seed in range(5)]) for subset in range(3)]
        for name in ("full", "from_scratch")
    )
    assert (contrast.runs, contrast.difference.n) == (15, 3)
    assert contrast.p_value == pytest.approx(stats.ttest_rel(one, two).pvalue)
    few = compare_records(subsets(make_record, range(2), range(3), full=0.9)).rows[0]
    assert few.test_accuracy.n == 2  # of 2 seeds and 3 subsets the seeds count
    alone = compare_records(subsets(make_record, (0,), range(4), full=0.9, from_scratch=0.5))
    assert alone.rows[0].test_accuracy.n == 4
    assert "too few seeds to tell (n=1, 3 needed)" in alone.verdicts[0].sentence


def test_folds_are_runs_of_one_trial_of_one_dataset(make_record):
    (arm,) = group_arms(folds(make_record, {"full": 0.9}))
    assert (len(arm.trials), len(arm.runs), arm.seeds, len(arm.splits)) == (1, 15, (0, 1, 2), 5)
    assert arm.arm.dataset == "digits, 5 shots"


def test_contents_that_change_within_a_fold_are_told_apart(make_record):
    records = folds(make_record, {"full": 0.9}, seeds=(0,))
    changed = make_record(seed=1, fingerprint="changed", settings={"dataset.folds": 5, "dataset.fold": 0})
    assert {arm.arm.dataset for arm in group_arms([*records, changed])} > {"digits, 5 shots #change"}


def test_over_folds_the_primary_test_is_the_corrected_one(make_record):
    records = folds(make_record, {"full": 0.95, "from_scratch": 0.94})
    comparison = compare_records(records)
    (contrast,) = comparison.contrasts
    by = {(r.arm["freeze_strategy"], pair_of(r).fold, r.seed): r.metrics["test"]["accuracy"] for r in records}
    d = np.array([np.mean([by["full", f, s] - by["from_scratch", f, s] for s in range(3)]) for f in range(5)])
    t = d.mean() / np.sqrt((1 / 5 + 1 / 4) * d.var(ddof=1))  # Nadeau & Bengio: a quarter as many test as other images
    assert contrast.primary == "corrected resampled t-test"
    assert contrast.p_value == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert (contrast.seeds, contrast.runs, contrast.difference.n) == (3, 15, 5)
    assert (contrast.wilcoxon_p, contrast.sign_flip_p) == (None, None)
    said = comparison.verdicts[0].sentence
    assert "over 3 seeds and 5 splits; transfer helps" in said
    assert "(corrected resampled t-test, Holm, p" in said
    assert comparison.rows[0].splits == 5


def cross_validation(records, **given):
    return [w for w in compare_records(records, **given).warnings if w.startswith("Cross-validation: ")]


def test_choices_over_folds_are_warned_of(make_record):
    (warning,) = cross_validation(folds(make_record, {"full": 0.95, "from_scratch": 0.94}))
    assert "and arms were chosen by mean val over 5 splits" in warning
    tuned = folds(make_record, {"full": 0.9})
    for record in folds(make_record, {"full": 0.8}):
        record.config["optimizer"]["lr_factor"] = 3.0
        tuned.append(record)
    (warning,) = cross_validation(tuned)
    assert "and trials were chosen by mean val over 5 splits" in warning
    assert not cross_validation(folds(make_record, {"full": 0.95}))  # nothing was chosen
    assert not cross_validation(arms(make_record, full=FULL, lp_ft=FULL))


def test_folds_with_a_test_split_of_its_own_are_not_warned_of(make_record):
    records = folds(make_record, {"full": 0.95, "from_scratch": 0.94})
    same = {record.job_id: Hits(np.arange(20), np.arange(20) < 15) for record in records}
    assert not cross_validation(records, hits=same)
    parts = {record.job_id: Hits(np.arange(20) + 20 * pair_of(record).fold, np.ones(20, bool)) for record in records}
    assert cross_validation(records, hits=parts)
    del same[records[0].job_id]
    assert cross_validation(records, hits=same)  # of one run nobody can tell


def test_repeated_folds_count_each_split_once(make_record):
    records = folds(make_record, {"full": 0.95, "from_scratch": 0.94}, split_seeds=(0, 1), k=3)
    (contrast,) = compare_records(records).contrasts
    assert (contrast.runs, contrast.difference.n, contrast.seeds) == (18, 6, 3)


def test_folds_of_one_seed_are_never_better(make_record):
    comparison = compare_records(folds(make_record, {"full": 0.99, "from_scratch": 0.5}, seeds=(0,)))
    assert "too few seeds to tell (n=1, 3 needed)" in comparison.verdicts[0].sentence
    assert not re.search("better|helps", comparison.verdicts[0].sentence)
    assert comparison.contrasts[0].p_value < 0.001  # of the test; nothing is concluded from it
    assert (comparison.contrasts[0].p_holm, comparison.contrasts[0].p_holm_all) == (None, None)


def test_equal_folds_are_rarely_called_different(make_record):
    """Runs of a fold share its images: differences within it lie closer together than between folds."""
    rng, called = np.random.default_rng(0), 0
    for _ in range(100):
        gap = rng.normal(0, 0.02, 5)  # of the fold
        records = [
            make_record(
                strategy,
                seed,
                val=0.9 - 0.001 * index,
                test=0.9 + index * gap[fold] + rng.normal(0, 0.005),
                fingerprint=str(fold) * 8,
                settings={"dataset.folds": 5, "dataset.fold": fold},
            )
            for index, strategy in enumerate(("full", "lp_ft"))
            for fold in range(5)
            for seed in range(3)
        ]
        (contrast,) = compare_records(records).contrasts
        called += contrast.p_holm < 0.05
    assert called <= 9


def test_arms_that_share_no_run_have_no_contrast(make_record):
    records = [make_record("full", seed) for seed in range(3)] + [make_record("lp_ft", seed) for seed in (7, 8, 9)]
    assert compare_records(records).contrasts == ()


def hits_of(records, right):
    """Job -> which of 200 images it had right; ``right`` gives the share by strategy, the first images first."""
    return {
        record.job_id: Hits(np.arange(200), np.arange(200) < 200 * right[record.arm["freeze_strategy"]])
        for record in records
    }


def test_a_difference_over_seeds_that_few_images_carry_is_warned_of(make_record):
    records = arms(make_record, full=FULL, lp_ft=[value - 0.01 for value in FULL])
    hits = hits_of(records, {"full": 0.96, "lp_ft": 0.955})
    (warning,) = [w for w in compare_records(records, hits=hits).warnings if "images" in w]
    assert warning.startswith("Against lp_ft the difference holds over seeds but not over test images")


def test_a_difference_over_images_that_seeds_do_not_bear_out_is_warned_of(make_record):
    records = arms(make_record, full=FULL[:3], lp_ft=[0.97, 0.80, 0.955])
    hits = hits_of(records, {"full": 0.96, "lp_ft": 0.8})
    (warning,) = [w for w in compare_records(records, hits=hits).warnings if "images" in w]
    assert warning.startswith("Against lp_ft the difference holds over test images but not over seeds")
    agreeing = hits_of(records, {"full": 0.96, "lp_ft": 0.96})
    assert not [w for w in compare_records(records, hits=agreeing).warnings if "images" in w]


def test_a_rank_test_that_disagrees_is_warned_of(make_record):
    outlier = [value - 0.01 for value in FULL[:-1]] + [FULL[-1] - 0.5]  # t is lost, all signs agree
    comparison = compare_records(arms(make_record, full=FULL, lp_ft=outlier))
    assert comparison.contrasts[0].p_value > 0.05 > comparison.contrasts[0].wilcoxon_p
    assert "Wilcoxon's test or the sign-flip test disagrees with the primary test about lp_ft." in comparison.warnings
    shifted = [value - 0.01 - index / 1e4 for index, value in enumerate(FULL[:5])]
    few = compare_records(arms(make_record, full=FULL[:5], lp_ft=shifted))
    assert not [w for w in few.warnings if "disagrees" in w]  # of 5 pairs no rank test can reach 5%


@pytest.mark.parametrize(
    ("tests", "says"),
    [
        ({"full": 0.90, "feature_extraction": 0.92}, "full above feature_extraction (Kornblith et al., 2019)"),
        ({"full": 0.90, "from_scratch": 0.90}, "full above from_scratch (Yosinski et al., 2014)"),
        ({"lp_ft": 0.90, "full": 0.91}, "lp_ft above full (Kumar et al., 2022)"),
        ({"full": 0.92, "feature_extraction": 0.90}, None),
        ({"lp_ft": 0.92, "feature_extraction": 0.95}, None),  # nobody published that one
    ],
)
def test_a_published_ordering_that_does_not_show_is_said(make_record, tests, says):
    records = [make_record(name, seed, val=0.9, test=mean) for name, mean in tests.items() for seed in range(3)]
    found = [w for w in compare_records(records).warnings if "published" in w]
    assert found == ([w for w in found if says in w][:1] if says else [])
    assert len(found) == (says is not None)
    two = [record for record in records if record.seed < 2]
    assert not [w for w in compare_records(two).warnings if "published" in w]


def test_several_datasets_are_ranked(make_record):
    rng = np.random.default_rng(0)
    means = {"full": 0.95, "lp_ft": 0.93, "from_scratch": 0.8}
    records = [
        make_record(
            name, seed, val=mean, test=mean + rng.normal(0, 0.03), arm={"dataset": dataset}, fingerprint=dataset
        )
        for dataset in ("a", "b", "c", "d")
        for name, mean in means.items()
        for seed in range(3)
    ]
    records += [
        make_record("bitfit", seed, val=0.1, test=0.1, arm={"dataset": "a"}, fingerprint="a") for seed in range(3)
    ]
    comparison = compare_records(records)
    overview = comparison.overview
    assert overview.datasets == ("a", "b", "c", "d")
    assert {each.arm.freeze_strategy for each in overview.standings} == set(means)  # bitfit ran on one only
    by = {key: [] for key in itertools.product(overview.datasets, means)}
    for record in records[:-3]:
        by[record.arm["dataset"], record.arm["freeze_strategy"]].append(record.metrics["test"]["accuracy"])
    scores = np.array([[np.mean(by[dataset, name]) for name in means] for dataset in overview.datasets])
    ranks = dict(zip(means, stats.rankdata(-scores, axis=1).mean(0), strict=True))
    assert {each.arm.freeze_strategy: each.average_rank for each in overview.standings} == pytest.approx(ranks)
    assert overview.friedman.p_value == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    best, *others = overview.standings
    column = dict(zip(means, scores.T, strict=True))
    pairs = list(itertools.combinations([each.arm.freeze_strategy for each in overview.standings], 2))
    raw = [stats.wilcoxon(column[one], column[two], method="exact").pvalue for one, two in pairs]
    corrected = dict(zip(pairs, multipletests(raw, method="holm")[1], strict=True))
    first = best.arm.freeze_strategy
    assert [other.wilcoxon_p for other in others] == pytest.approx(
        [corrected[first, other.arm.freeze_strategy] for other in others]
    )
    assert best.wilcoxon_p is None
    assert not any("the same images" in warning for warning in comparison.warnings)
    assert compare_records([r for r in records if r.arm["dataset"] == "a"]).overview is None


def test_the_same_images_with_other_labels_are_no_datasets_of_their_own(make_record):
    records = [
        make_record(strategy, seed, test=0.8, arm={"dataset": dataset}, fingerprint=content)
        for strategy in ("full", "feature_extraction")
        for seed in range(3)
        for dataset, content in (("birds, 5 shots", "aa"), ("birds, 20 shots", "aa"), ("insects", "bb"))
    ]
    (warning,) = [one for one in compare_records(records).warnings if "the same images" in one]
    assert warning.startswith("birds, 20 shots and birds, 5 shots are the same images with other labels used")
