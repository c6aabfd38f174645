"""Which run of a sweep is used: arm, trial and seed by val, and by nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tl_experiments.analysis import compare
from tl_experiments.analysis.winner import winner
from tl_experiments.errors import UserError
from tl_experiments.records import RunRecord


@pytest.fixture
def sweep(tmp_path):
    """``sweep(record, ...)``: a folder of finished runs."""

    def make(*records):
        for number, one in enumerate(records):
            folder = tmp_path / "sweep" / f"job{number}"
            folder.mkdir(parents=True)
            replace(one, job_id=folder.name).write(folder)
        return tmp_path / "sweep"

    return make


def test_the_best_seed_of_the_best_trial_of_the_recommended_arm(sweep, make_record):
    """One seed of ``full`` and one of its other trial are better than any; the mean over seeds decides."""
    folder = sweep(
        *(make_record("full", seed, val=val, test=0.99) for seed, val in enumerate((0.99, 0.5, 0.5))),
        *(make_record("feature_extraction", seed, val=val, test=0.1) for seed, val in enumerate((0.80, 0.84, 0.82))),
        *(
            make_record("feature_extraction", seed, val=val, settings={"optimizer.lr_factor": 3.0})
            for seed, val in enumerate((0.85, 0.70, 0.70))
        ),
    )
    assert compare(folder).verdicts[0].recommended.freeze_strategy == "feature_extraction"
    found = winner(folder)
    assert found.folder == folder / "job4"
    assert found.reason == "feature_extraction of 2 arms by val, seed 1, the best of 3 on val (val accuracy 0.8400)"
    assert winner(folder, seed=2).folder == folder / "job5"
    assert winner(folder, seed=2).reason == "feature_extraction of 2 arms by val, seed 2 (val accuracy 0.8200)"
    with pytest.raises(
        UserError, match=r"--seed: feature_extraction, .* has no run of seed 7 -> choose one of 0, 1, 2"
    ):
        winner(folder, seed=7)


def test_nothing_of_test_is_looked_at(sweep, make_record):
    """Whatever stands there, the choice is the same."""
    records = [make_record("full", seed, val=0.8 + seed / 100) for seed in range(3)]
    folder = sweep(*records)
    first = winner(folder)
    for number, path in enumerate(sorted(folder.glob("*/record.json"))):
        content = json.loads(path.read_text())
        content["metrics"]["test"] = dict.fromkeys(content["metrics"]["test"], 1 - number / 10)
        path.write_text(json.dumps(content))
    assert winner(folder) == first
    assert first.folder.name == "job2"


def test_a_tie_goes_to_the_lower_nll(sweep, make_record):
    folder = sweep(*(make_record("full", seed, val=0.8, nll=nll) for seed, nll in enumerate((0.5, 0.4, 0.6))))
    assert winner(folder).folder.name == "job1"


def test_a_run_that_diverged_is_not_chosen(sweep, make_record):
    folder = sweep(make_record("full", 0, val=float("nan")), make_record("full", 1, val=0.3))
    assert winner(folder).folder.name == "job1"
    for path in folder.glob("job1/*"):
        path.unlink()
    with pytest.raises(UserError, match="no usable run"):
        winner(folder)


def test_several_datasets_need_a_choice(sweep, make_record):
    folder = sweep(make_record("full"), make_record("full", arm={"dataset": "letters"}))
    with pytest.raises(
        UserError, match=r"a sweep over 2 datasets \(.*letters.*\), expected one -> name the folder of one"
    ):
        winner(folder)
    assert RunRecord.read(folder / "job0").arm["dataset"] != "letters"
