import numpy as np
import pytest
from scipy import stats

from tl_experiments.analysis.arms import SearchBudget
from tl_experiments.analysis.columns import explanation
from tl_experiments.analysis.comparison import compare_records
from tl_experiments.analysis.data_caveats import is_leakage
from tl_experiments.analysis.results import Comparison
from tl_experiments.analysis.tables import table_markdown
from tl_experiments.data.findings import leakage_notes
from tl_experiments.data.items import Checked, Item, Source
from tl_experiments.errors import UserError


def job(state, job_id="j", cause="because", **fields):
    entry = {"id": job_id, "overrides": ["seed=1"], "state": state, "cause": cause, "log": "log.txt", "seconds": 1.5}
    return entry | fields


def row_of(comparison, strategy):
    return next(row for row in comparison.rows if row.arm.freeze_strategy == strategy)


def test_the_row_holds_the_chosen_trial_and_the_cost_of_all(make_record):
    low = {"optimizer.lr_factor": 0.3}
    records = [
        make_record(seed=0, val=0.9, test=0.80, nll=0.2, wall_clock_s=2, peak_memory_bytes=5),
        make_record(seed=1, val=0.8, test=0.90, nll=0.4, wall_clock_s=4, peak_memory_bytes=9),
        make_record(seed=0, val=0.1, test=0.99, settings=low, wall_clock_s=10, peak_memory_bytes=99),
        make_record(seed=1, val=0.1, test=0.99, settings=low, wall_clock_s=20, peak_memory_bytes=99),
    ]
    (row,) = compare_records(records).rows
    assert (row.trials, row.settings, row.seeds, row.max_epochs) == (2, {"lr_factor": "1"}, (0, 1), 20)
    assert (row.val_accuracy, row.test_accuracy.mean) == (pytest.approx(0.85), pytest.approx(0.85))
    assert (row.test_macro_f1, row.test_nll) == (pytest.approx(0.84), pytest.approx(0.3))
    assert (row.wall_clock_s, row.all_trials_s, row.peak_memory_bytes, row.labels_spent) == (3, 36, 9, 100)
    assert (row.trained_parameters, row.total_parameters) == (4_920_000, 4_920_000)
    low_end, high_end = stats.t.interval(0.95, 1, loc=0.85, scale=stats.sem([0.8, 0.9]))
    assert (row.test_accuracy.low, row.test_accuracy.high) == (pytest.approx(low_end), pytest.approx(high_end))


def test_pretraining_is_counted_once_for_each_set_of_weights(make_record):
    weights = [{"source": "outputs/a", "sha256": digest, "matched": 1} for digest in ("a", "a", "b")]
    records = [make_record(seed=s, weights=w, pretraining_s=60.0) for s, w in enumerate(weights)]
    rows = {row.arm.backbone: row for row in compare_records(records).rows}
    assert {backbone: row.pretraining_s for backbone, row in rows.items()} == {
        "resnet10t #a": 60.0,
        "resnet10t #b": 60.0,
    }
    assert {backbone: row.all_trials_s for backbone, row in rows.items()} == {"resnet10t #a": 8.0, "resnet10t #b": 4.0}


def test_transfer_gain_is_paired_by_seed(make_record):
    full, control = {0: 0.90, 1: 0.94, 2: 0.91, 5: 0.0}, {2: 0.88, 1: 0.92, 0: 0.85, 7: 0.0}
    records = [make_record("full", seed, val=0.99, test=test) for seed, test in full.items()]
    records += [make_record("from_scratch", seed, val=0.9, test=test) for seed, test in control.items()]
    comparison = compare_records(records)
    reference = stats.ttest_rel([0.90, 0.94, 0.91], [0.85, 0.92, 0.88])
    gain = row_of(comparison, "full").transfer_gain
    assert (gain.n, gain.mean) == (3, pytest.approx((0.05 + 0.02 + 0.03) / 3))
    assert gain.low == pytest.approx(reference.confidence_interval(0.95).low)
    assert row_of(comparison, "from_scratch").transfer_gain is None
    assert row_of(comparison, "from_scratch").p_value == pytest.approx(reference.pvalue)


@pytest.mark.parametrize(
    ("tests", "negative"),
    [
        ([0.80, 0.81, 0.79], True),
        ([0.80, 0.95, 0.90], False),  # the mean is below 0, the interval is not
        ([0.91, 0.89, 0.90], False),
        ([0.99, 0.98, 0.99], False),
        ([0.50, 0.50], False),  # two seeds tell nothing, in either direction
    ],
)
def test_negative_transfer(make_record, tests, negative):
    records = [make_record("feature_extraction", seed, test=test) for seed, test in enumerate(tests)]
    records += [make_record("from_scratch", seed, test=test) for seed, test in enumerate([0.90, 0.90, 0.90])]
    comparison = compare_records(records)
    assert row_of(comparison, "feature_extraction").negative_transfer is negative
    assert ("Negative transfer" in comparison.verdicts[0].sentence) is negative


def test_negative_transfer_is_corrected_over_the_arms(make_record):
    control, loss = [0.90, 0.92, 0.91, 0.93], [0.880, 0.912, 0.888, 0.920]
    records = [make_record("from_scratch", seed, val=0.1, test=test) for seed, test in enumerate(control)]
    one = [make_record("feature_extraction", seed, val=0.2, test=test) for seed, test in enumerate(loss)]
    rng = np.random.default_rng(0)
    others = {"full": 0.5, "lp_ft": 0.4, "bitfit": 0.3}
    noise = [
        make_record(name, seed, val=val, test=test + rng.normal(0, 0.03))
        for name, val in others.items()
        for seed, test in enumerate(control)
    ]
    p_value = stats.ttest_rel(loss, control).pvalue
    assert 0.0125 < p_value < 0.025
    best = [make_record("full", seed, val=0.5, test=test) for seed, test in enumerate(control)]
    alone = row_of(compare_records([*records, *one, *best]), "feature_extraction")
    among = row_of(compare_records([*records, *one, *noise]), "feature_extraction")
    assert alone.transfer_gain == among.transfer_gain
    assert among.transfer_gain.high < 0  # the interval is the arm's own
    assert alone.transfer_gain_p == pytest.approx(2 * p_value)
    assert among.transfer_gain_p == pytest.approx(4 * p_value)
    assert (alone.negative_transfer, among.negative_transfer) == (True, False)


def test_equal_losses_have_no_interval_and_are_no_negative_transfer(make_record):
    """A solved head on the same labels gives the same number with every seed: that is one run, however often."""
    tests = {"feature_extraction": 0.80, "from_scratch": 0.90}
    comparison = compare_records(
        make_record(name, seed, test=test) for name, test in tests.items() for seed in range(10)
    )
    row = row_of(comparison, "feature_extraction")
    assert (row.negative_transfer, row.transfer_gain.low, row.transfer_gain.sd) == (False, None, 0.0)
    text = table_markdown(comparison)
    assert "| 0.800 |" in text
    assert "[" not in comparison.verdicts[0].sentence
    assert "no interval: all runs or differences are equal" in text
    assert not any("no interval" in line for line in explanation(compare_records(spread(make_record)).rows))


def spread(make_record):
    return [make_record("full", seed, test=0.8 + seed / 100) for seed in range(3)]


@pytest.mark.parametrize(
    ("control", "full", "named"),
    [
        ((True, True, False), (False, False, False), "from_scratch (2 of 3 runs)"),
        ((True, True, False), (True, True, True), "from_scratch (2 of 3 runs) and full (3 of 3 runs)"),
        ((True, False, False), (True, False, False), None),
    ],
)
def test_arms_that_still_rise_are_named(make_record, control, full, named):
    records = [make_record("from_scratch", seed, val=0.95, still_rising=rise) for seed, rise in enumerate(control)]
    records += [make_record("full", seed, still_rising=rise) for seed, rise in enumerate(full)]
    said = f"Still rising at the end: {named}. More trainer.max_epochs may change the comparison."
    assert [w for w in compare_records(records).warnings if "rising" in w] == ([said] if named else [])


def test_untuned_arms_at_different_rates_are_named(make_record):
    rates = {"full": 3e-4, "from_scratch": 1e-3}
    records = [make_record(name, learning_rate=rate) for name, rate in rates.items()]
    (warning,) = compare_records(records).warnings
    assert warning.startswith("No arm was tuned: each ran at its strategy's own learning rate.")
    tuned = [make_record(name, learning_rate=3 * r, settings={"optimizer.lr_factor": 3.0}) for name, r in rates.items()]
    assert not [w for w in compare_records(records + tuned).warnings if "tuned" in w]


def test_random_weights_transfer_nothing(make_record):
    start = {"source": "random", "sha256": None, "matched": 0}
    records = [make_record("full", seed, test=0.5, weights=start) for seed in range(4)]
    records += [make_record("from_scratch", seed, val=0.1, test=0.9 + seed / 100, weights=start) for seed in range(4)]
    comparison = compare_records(records)
    row = row_of(comparison, "full")
    assert (row.transfer_gain, row.negative_transfer) == (None, False)
    assert "; nothing was transferred: it starts from random weights. On test it is worse than from_scratch" in (
        comparison.verdicts[0].sentence
    )


def test_a_control_among_random_weights_says_nothing_of_transfer(make_record):
    start = {"source": "random", "sha256": None, "matched": 0}
    records = [make_record("full", seed, val=0.1, test=0.5, weights=start) for seed in range(4)]
    records += [make_record("from_scratch", seed, val=0.9, test=0.9 + seed / 100, weights=start) for seed in range(4)]
    sentence = compare_records(records).verdicts[0].sentence
    assert "; nothing was transferred: all arms start from random weights." in sentence
    assert "help" not in sentence


def test_unequal_budgets_are_named(make_record):
    records = [make_record("full"), make_record("full", settings={"optimizer.lr_factor": 3.0})]
    records += [make_record("from_scratch", settings={"trainer.max_epochs": 5})]
    assert compare_records(records).warnings == (
        "Unequal budgets: 1 trial for from_scratch; 2 trials for full.",
        "Unequal budgets: 5 epochs for from_scratch; 20 epochs for full.",
    )
    records = [make_record("full"), make_record("from_scratch", 0), make_record("from_scratch", 1)]
    assert compare_records(records).warnings == ("Unequal budgets: 1 seed for full; 2 seeds for from_scratch.",)


def test_equal_budgets_warn_of_nothing(make_sweep):
    assert compare_records(make_sweep({"full": 0.9, "from_scratch": 0.8}, factors=(1.0, 3.0))).warnings == ()


def test_a_choice_at_the_edge_of_what_was_tried_is_named(make_sweep):
    comparison = compare_records(make_sweep({"full": 0.9, "from_scratch": 0.8}, factors=(0.3, 1.0, 3.0)))
    assert comparison.warnings == (
        "optimizer.lr_factor=3, the largest tried, was chosen for full and from_scratch: a value beyond may be better.",
    )
    inside = compare_records(make_sweep({"full": 0.9}, factors=(0.3, 30.0, 3.0)))
    assert inside.warnings == ()


@pytest.mark.parametrize(
    ("intervals", "at_edge"),
    [
        ({"optimizer.lr_factor": (0.1, 3.1)}, False),  # drawn from an interval, whose ends are elsewhere
        ({"optimizer.lr_factor": (0.1, 3.0)}, True),
        ({"optimizer.weight_decay": (0.0, 1.0)}, True),  # it stood in a list, each of whose values was tried once
    ],
)
def test_the_ends_of_what_a_search_drew_from_are_its_edges(make_sweep, intervals, at_edge):
    records = list(make_sweep({"full": 0.9}, factors=(0.3, 1.0, 3.0)))
    search = SearchBudget(frozenset(record.job_id for record in records), {"ok": 3}, 0.0, intervals)
    warnings = compare_records(records, searches=[search]).warnings
    assert any("optimizer.lr_factor=3, the largest tried" in warning for warning in warnings) is at_edge


def test_jobs_that_did_not_end_well_are_listed_and_in_no_mean(make_record):
    nan = make_record(seed=3, test=float("nan"))
    records = [make_record(seed=seed, test=0.9) for seed in range(3)]
    jobs = [
        job("ok", "a"),
        job("failed", "b"),
        job("diverged", "c", cause="nan at step 3"),
        job("oom", "d", cause=None),
    ]
    comparison = compare_records([*records, nan], jobs)
    assert [(lost.job_id, lost.state, lost.cause) for lost in comparison.lost_jobs] == [
        (nan.job_id, "diverged", "test accuracy is nan"),
        ("b", "failed", "because"),
        ("c", "diverged", "nan at step 3"),
        ("d", "oom", ""),
    ]
    assert comparison.warnings == ("4 jobs not in the table: 2 diverged, 1 failed, 1 oom.",)
    assert comparison.rows[0].test_accuracy.mean == pytest.approx(0.9)


def test_notes_come_once(make_record):
    data = {"fingerprint": "f", "sizes": {}, "labels_spent": 1, "notes": ["no test split"]}
    records = [make_record(seed=seed, data=data, notes=("a fallback",)) for seed in range(3)]
    assert compare_records(records).notes == ("a fallback", "no test split")


def test_leakage_is_one_warning_a_dataset(make_record):
    def records(dataset, **notes):
        return [
            make_record(strategy, int(seed[1:]), arm={"dataset": dataset}, fingerprint=dataset, data={
                "fingerprint": dataset, "sizes": {}, "labels_spent": 1, "notes": [*found, "no test split"],
            })
            for strategy in ("full", "from_scratch")
            for seed, found in notes.items()
        ]  # fmt: skip

    says = "in more than one split"
    few, many = (f"Leakage: {number} {says} (x = y)." for number in ("1 image stands", "12 images stand"))
    one = [*records("a", s0=[few], s1=[many], s2=[])]
    two = records("b", s0=[f"Leakage: 1 image stands {says} (v = w)."])
    comparison = compare_records([*one, *two, *records("c", s0=[])])
    assert comparison.notes == ("no test split",)
    copies = "Copies in train and test make test accuracy too good; tl data check names them all."
    assert [w for w in comparison.warnings if "eakage" in w] == [
        f"a: Leakage: up to 12 images stand {says} (x = y), in 4 of 6 runs. {copies}",
        f"b: Leakage: 1 image stands {says} (v = w), in 2 runs. {copies}",
    ]


def test_the_leakage_of_a_run_is_what_is_warned_of():
    """The sentence that runs note is known here."""
    items = (Item("x", 0, "train"), Item("y", 0, "test"))
    checked = [Checked(item.id, "same", 8, 8, "RGB", "PNG", None, None) for item in items]
    source = Source(("a",), items, lambda index: None, list, check=lambda: checked)
    (note,) = leakage_notes(source, {"train": np.array([0]), "test": np.array([1])})
    assert is_leakage(note)
    assert not is_leakage("No test split: the given val split serves as test.")


def test_nothing_finished_is_an_error():
    with pytest.raises(UserError, match=r"^compare: 0 finished runs, expected 1 or more; 1 job .*: 1 failed\. -> "):
        compare_records([], [job("failed")])


def test_json_round_trip(make_sweep, make_record):
    records = make_sweep({"full": 0.95, "from_scratch": 0.9}, factors=(0.3, 1.0))
    records += [make_record(arm={"dataset": "\ud800\x1b[31m letters", "head": "🙂"})]
    comparison = compare_records(records, [job("failed")])
    text = comparison.to_json()
    assert text.isascii()
    assert Comparison.from_json(text) == comparison
    assert Comparison.from_json(text).to_json() == text
