"""Settings tuned on one seed: the other seeds run with what val chose, and nothing else."""

from __future__ import annotations

import json
import re
from statistics import fmean

import pytest

from tl_experiments.errors import ConfigError
from tl_experiments.records import RunRecord
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.tuning import stages
from tl_experiments.training.identity import job_id

FACTORS, SEEDS = (0.3, 1, 3), (0, 1, 2)


@pytest.fixture
def jobs(tiny):
    configs = [
        tiny(f"freeze_strategy={name}", f"optimizer.lr_factor={factor}", f"seed={seed}", "tuning_seed=1")
        for name, factors in (("full", FACTORS), ("feature_extraction", FACTORS), ("from_scratch", (1,)))
        for factor in factors
        for seed in SEEDS
    ]
    return [Job(job_id(config), (), config) for config in configs]


def test_the_tuning_seed_comes_first_and_an_arm_without_a_choice_at_once(jobs):
    first = {
        (job.config.freeze_strategy.name, job.config.optimizer.lr_factor, job.config.seed) for job in stages(jobs).first
    }
    assert first == {
        *((name, factor, 1) for name in ("full", "feature_extraction") for factor in FACTORS),
        *(("from_scratch", 1, seed) for seed in SEEDS),
    }


def test_without_a_tuning_seed_all_come_first(tiny):
    jobs = [Job(str(seed), (), tiny(f"seed={seed}")) for seed in SEEDS]
    assert stages(jobs).first == tuple(jobs)


def test_each_arm_goes_on_with_its_own_choice(jobs):
    planned = stages(jobs)
    by_id = {job.id: job.config for job in jobs}
    wanted = {"full": 3, "feature_extraction": 0.3}
    seen = []

    def choose(settings):
        (name,) = {by_id[run].freeze_strategy.name for runs in settings.values() for run in runs}
        seen.append((name, sorted(len(runs) for runs in settings.values())))
        return next(key for key, (run,) in settings.items() if by_id[run].optimizer.lr_factor == wanted[name])

    second, left_out = planned.second({job.id: job.id for job in planned.first}, choose)
    assert sorted(seen) == [("feature_extraction", [1, 1, 1]), ("full", [1, 1, 1])]
    assert {(job.config.freeze_strategy.name, job.config.optimizer.lr_factor, job.config.seed) for job in second} == {
        (name, factor, seed) for name, factor in wanted.items() for seed in (0, 2)
    }
    assert {job.id for job in (*planned.first, *second)} | left_out.keys() == {job.id for job in jobs}
    assert set(left_out.values()) == {"val chose another setting with seed 1"}


def test_a_setting_that_did_not_finish_is_not_chosen(jobs):
    planned = stages(jobs)
    records = {
        job.id: job.id
        for job in planned.first
        if job.config.freeze_strategy.name != "full" and job.config.optimizer.lr_factor == 1
    }
    second, left_out = planned.second(records, lambda settings: min(settings))
    assert {job.config.freeze_strategy.name for job in second} == {"feature_extraction"}
    assert {job.config.optimizer.lr_factor for job in second} == {1}
    assert "no setting finished with seed 1" in left_out.values()


def test_a_tuning_seed_that_is_none_of_the_seeds_is_said(tiny):
    configs = [tiny(f"optimizer.lr_factor={factor}", "seed=3", "tuning_seed=0") for factor in FACTORS]
    jobs = [Job(job_id(config), (), config) for config in configs]
    with pytest.raises(ConfigError, match="0, which is not among the seeds of feature_extraction: 3 -> tuning_seed=3"):
        stages(jobs)


def test_a_sweep_tunes_on_one_seed_and_says_so(tl, tmp_path):
    command = (
        "train", "-m", "dataset=digits", "dataset.shots=3", "backbone=test_resnet", "backbone.weights=random",
        "backbone.preprocessing.image_size=32", "trainer.max_epochs=2", "freeze_strategy=feature_extraction",
        "optimizer.lr_factor=0.01,1,100", "seed=0,1,2", "tuning_seed=0", "name=tuned",
    )  # fmt: skip
    code, preview, _ = tl(*command, "dry_run=true")
    assert code == 0
    assert "3 jobs to run" in preview
    assert "then, of 6 more jobs, those with the settings that val chooses with seed 0" in preview
    code, out, err = tl(*command)
    assert code == 0
    assert "tuned on seed 0: 4 jobs of settings that val did not choose are left out" in err
    ledger = json.loads((tmp_path / "outputs/tuned/sweep.json").read_text())
    states = {entry["id"]: entry["state"] for entry in ledger["jobs"]}
    assert sorted(states.values()) == ["ok"] * 5 + ["unchosen"] * 4
    records = {job: RunRecord.read(tmp_path / "outputs/tuned" / job) for job, state in states.items() if state == "ok"}
    tuning = [record for record in records.values() if record.seed == 0]
    best = min(tuning, key=lambda one: (-one.metrics["val"]["accuracy"], one.metrics["val"]["nll"]))
    others = {record.config["optimizer"]["lr_factor"] for record in records.values() if record.seed != 0}
    assert others == {best.config["optimizer"]["lr_factor"]}
    chosen = [
        one.metrics["test"]["accuracy"] for one in records.values() if one.config["optimizer"]["lr_factor"] in others
    ]
    assert f"{fmean(chosen):.3f}" in out
    assert "not in the table" not in out
    for entry in ledger["plan"]["costs"]:
        assert entry.keys() >= {"jobs", "predicted_s", "actual_s", "predicted_encoded", "actual_encoded"}
    assert [entry["jobs"] for entry in ledger["plan"]["costs"]] == [3, 2]
    first = [entry["id"] for entry in ledger["jobs"] if entry["state"] == "ok"][-1]
    assert "nothing to run" in tl(*command, "dry_run=true")[1]
    (tmp_path / "outputs/tuned" / first / "record.json").rename(tmp_path / "kept.json")
    assert "1 job to run" in tl(*command, "dry_run=true")[1]
    (tmp_path / "kept.json").rename(tmp_path / "outputs/tuned" / first / "record.json")
    code, again, _ = tl(*command)
    assert code == 0
    assert re.sub(r"\s+", " ", again) == re.sub(r"\s+", " ", out)
    assert json.loads((tmp_path / "outputs/tuned/sweep.json").read_text())["jobs"] == ledger["jobs"]


@pytest.mark.parametrize("key", ["dataset.split_seed", "dataset.subset_seed", "dataset.fold"])
def test_what_repeats_a_run_is_no_setting_to_choose(key, tiny):
    folds = ["dataset.folds=3", "dataset.shots=null"] if key == "dataset.fold" else []
    configs = [
        tiny(f"{key}={number}", f"seed={seed}", "tuning_seed=0", *folds) for number in (0, 1, 2) for seed in SEEDS
    ]
    jobs = [Job(job_id(config), (), config) for config in configs]
    assert stages(jobs).first == tuple(jobs)
