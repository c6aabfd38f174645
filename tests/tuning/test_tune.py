"""``tl tune`` as a user runs it: equal budgets, choices on val, pruning, and every trial once whatever happens."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

from tests.analysis.test_choices import pictures
from tests.conftest import TINY
from tests.sweeps.test_sweep import job
from tl_experiments.analysis import compare
from tl_experiments.config import compose
from tl_experiments.errors import ConfigError
from tl_experiments.records import RunRecord
from tl_experiments.sweeps.jobs import Trial
from tl_experiments.sweeps.ledger import Ledger
from tl_experiments.sweeps.pruning import open_journal
from tl_experiments.sweeps.sweep import run_sweep

ROOT = Path(__file__).parents[2]
ONE_THREAD = "executor.threads_per_job=1"


def start(out, *arguments):
    command = [sys.executable, "-m", "tl_experiments", "tune", *TINY, f"output_dir={out}", "name=x", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )


def words(text):
    """Without the terminal's line ends."""
    return " ".join(text.split())


def records(folder):
    return [RunRecord.read(path.parent) for path in sorted(folder.glob("*/record.json"))]


def trials(folder):
    """Of each arm in order: parameters, value and state of every trial."""
    storage = open_journal(folder)
    return {
        name: [
            (trial.params, trial.values, trial.state.name)
            for trial in optuna.load_study(study_name=name, storage=storage).trials
        ]
        for name in sorted(optuna.get_all_study_names(storage))
    }


SEARCH = ("freeze_strategy=full,feature_extraction", "optimizer.lr_factor=tag(log,interval(1e-3,10))", "seed=0,1")


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    """The same search over the same images, with right and with shuffled test labels."""
    found = {}
    for name, shuffled in (("right", False), ("shuffled", True)):
        where = tmp_path_factory.mktemp(name)
        root = pictures(where / "pictures", shuffled)
        process = start(
            where, *SEARCH, "dataset=image_folder", f"dataset.root={root}", "dataset.shots=null", ONE_THREAD,
            "trainer.max_epochs=5", "tune.trials=9", "tune.parallel=3", "tune.sampler=random", "tune.pruner=median",
        )  # fmt: skip
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert err.count("the other seeds, with the setting that val chose for each arm") == 1
        found[name] = where / "x", out
    return found


def test_every_arm_has_as_many_trials_and_the_table_says_so(searches):
    folder, out = searches["right"]
    assert [len(found) for found in trials(folder).values()] == [9, 9]
    assert "9 trials an arm" in words(out)
    assert [row.trials for row in compare(folder).rows] == [9, 9]


def test_trials_behind_the_others_are_pruned_and_that_is_no_failure(searches):
    folder, out = searches["right"]
    ledger = Ledger.open(folder)
    pruned = [entry for entry in ledger.jobs.values() if entry.state == "pruned"]
    assert pruned
    assert all("freeze_strategy=full" in entry.overrides for entry in pruned)  # heads are trained together
    assert {entry.state for entry in ledger.jobs.values()} == {"ok", "pruned"}
    told = [state for found in trials(folder).values() for _, _, state in found]
    assert Counter(told)["PRUNED"] == len(pruned)
    for entry in pruned:
        left = {path.name for path in (folder / entry.id).iterdir()}
        assert left == {"job.log", "metrics.jsonl", "start.json"}
        steps = [json.loads(line)["step"] for line in (folder / entry.id / "metrics.jsonl").open()]
        assert entry.cause.startswith(f"after step {steps[-1]} of 20: val accuracy 0.")
    assert f"{len(pruned)} pruned" in words(out)
    assert "not in the table" not in words(out)


def test_the_chosen_setting_is_the_best_on_val_and_alone_has_all_seeds(searches):
    folder, _ = searches["right"]
    for strategy in ("full", "feature_extraction"):
        runs = [one for one in records(folder) if one.config["freeze_strategy"]["name"] == strategy]
        tuning = [one for one in runs if one.seed == 0]
        best = min(tuning, key=lambda one: (-one.metrics["val"]["accuracy"], one.metrics["val"]["nll"]))
        (other,) = (one for one in runs if one.seed == 1)
        assert other.config["optimizer"]["lr_factor"] == best.config["optimizer"]["lr_factor"]


def test_noise_in_the_test_labels_changes_no_trial_and_no_choice(searches):
    found = []
    for folder, _ in searches.values():
        ran = {(one.arm["freeze_strategy"], one.config["optimizer"]["lr_factor"], one.seed) for one in records(folder)}
        rows = [
            (row.arm.freeze_strategy, row.settings, row.val_accuracy, row.recommended) for row in compare(folder).rows
        ]
        numbered = [each for _, each in sorted(trials(folder).items(), key=lambda item: item[0].split()[:-1])]
        found.append((ran, rows, [[trial[0] for trial in each] for each in numbered]))
    assert found[0] == found[1]
    accuracies = [[row.test_accuracy.mean for row in compare(folder).rows] for folder, _ in searches.values()]
    assert accuracies[0] != accuracies[1]


@pytest.mark.parametrize(("others", "state"), [(1.0, "pruned"), (0.0, "ok")])
def test_a_run_asks_after_each_validation(tiny, tmp_path, others, state):
    """Five trials are there that reached 1 at every validation, or 0."""
    study = optuna.create_study(study_name="arm", storage=open_journal(tmp_path), direction="maximize")
    for _ in range(5):
        everywhere = dict.fromkeys(range(1, 20), others)
        study.add_trial(
            optuna.create_trial(value=others, intermediate_values=everywhere, state=optuna.trial.TrialState.COMPLETE)
        )
    asked = study.ask()
    cfg = compose(
        [*TINY, "freeze_strategy=full", "trainer.max_epochs=4", ONE_THREAD, "tune.pruner=median"], verb="tune"
    )
    one = job(cfg)
    outcome = run_sweep([type(one)(one.id, (), cfg, Trial("arm", asked._trial_id))], tmp_path, "tl tune")
    assert (outcome.bad, outcome.ok) == ((), 1 if state == "ok" else 0)
    assert Ledger.open(tmp_path).jobs[one.id].state == state
    lines = [json.loads(line) for line in (tmp_path / one.id / "metrics.jsonl").open()]
    (trial,) = (each for each in study.trials if each.number == 5)
    assert (
        list(trial.intermediate_values.values())
        == [line["val_accuracy"] for line in lines][: len(lines) - (state == "ok")]
    )
    assert len(lines) == (2 if state == "pruned" else 5)  # the start is the first


def test_killed_at_any_moment_it_goes_on_and_repeats_nothing(tmp_path):
    arguments = (*SEARCH, "tune.trials=4", "tune.parallel=2", ONE_THREAD)
    whole = start(tmp_path / "whole", *arguments)
    assert whole.wait() == 0, whole.stderr.read()
    draw = random.Random(0)
    for _ in range(3):
        process = start(tmp_path / "cut", *arguments)
        before = len(list((tmp_path / "cut").glob("x/*/record.json")))
        while process.poll() is None and len(list((tmp_path / "cut").glob("x/*/record.json"))) < before + 2:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = start(tmp_path / "cut", *arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert trials(tmp_path / "cut/x") == trials(tmp_path / "whole/x")
    done = {name: {one.job_id for one in records(tmp_path / name / "x")} for name in ("whole", "cut")}
    assert done["cut"] == done["whole"]
    assert len(done["whole"]) == 10
    assert "4 trials an arm" in words(out)


def test_it_looks_ahead_goes_on_with_more_trials_and_shows_the_front(tl, tmp_path):
    command = (
        "tune", *TINY, "freeze_strategy=feature_extraction", "name=x", "trainer.max_epochs=1,2",
        "optimizer.lr_factor=tag(log,interval(0.1,10))", "tune.objectives=[accuracy,seconds]", "tune.parallel=2",
    )  # fmt: skip
    code, out, _ = tl(*command, "tune.trials=3", "seed=0,1", "dry_run=true")
    assert code == 0
    assert "2 jobs to run" in out
    assert "trial 1 of 3 of digits, 2 shots, test_resnet (random), linear, feature_extraction: " in out
    assert "then further trials up to 3 of each arm" in out
    assert "then the other seeds with the setting that val chooses for each arm" in out
    assert not (tmp_path / "outputs/x").exists()
    code, out, err = tl(*command, "tune.trials=3")
    assert (code, err.count("trials ")) == (0, 2)
    assert out.startswith("Pareto front of digits, 2 shots, test_resnet (random), linear, feature_extraction: val acc")
    code, out, err = tl(*command, "tune.trials=4")
    assert code == 0
    assert "trials 4 to 4 of 4, of 1 arm" in err
    assert "4 trials an arm" in words(out)
    code, again, err = tl(*command, "tune.trials=4")
    assert (code, again) == (0, out)
    assert "to run" not in err
    assert "other seeds" not in err


def test_failed_trials_count_and_are_the_worst(tl, tmp_path):
    """Rates at which training diverges."""
    code, out, err = tl(
        "tune", *TINY, "freeze_strategy=full", "name=x", "optimizer=sgd", "tune.trials=4",
        "optimizer.lr=tag(log,interval(1e-2,1e18))", "tune.sampler=random",
    )  # fmt: skip
    states = Counter(entry.state for entry in Ledger.open(tmp_path / "outputs/x").jobs.values())
    assert states["diverged"]
    assert states["ok"]
    assert code == 0, err
    assert "4 trials an arm" in words(out)
    assert f"Trials without a result, which count as tried: full ({states['diverged']} diverged)" in words(out)
    values = [value for _, (value,), _ in next(iter(trials(tmp_path / "outputs/x").values()))]
    assert values.count(0.0) == states["diverged"]


def test_what_was_tried_again_counts_as_it_ended_then(tl, tmp_path):
    """Something stands in the way of the first trial; a kill then comes before the budget is entered."""
    folder = tmp_path / "outputs/x"
    command = (
        "tune", *TINY, "freeze_strategy=full", "name=x", "optimizer.lr_factor=interval(0.5,2)", "tune.trials=2",
        "tune.parallel=2",
    )  # fmt: skip
    in_the_way = folder / job(compose([*TINY, "freeze_strategy=full"], verb="tune")).id / "metrics.jsonl"
    in_the_way.mkdir(parents=True)
    code, out, _ = tl(*command)
    assert (code, "full (1 failed)" in words(out)) == (1, True)
    in_the_way.rmdir()
    code, out, err = tl(*command, "retry_failed=true")
    assert (code, "Trials without a result" in out) == (0, False), err
    (budget,) = Ledger.open(folder).plan["tuning"]
    assert budget["states"] == {"ok": 2}
    ledger = Ledger.open(folder)
    del ledger.plan["tuning"]
    ledger.write()
    assert tl(*command)[0] == 0
    assert Ledger.open(folder).plan["tuning"] == [budget]


def test_an_arm_that_cannot_train_at_all_does_not_use_up_its_trials(tl, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    code, _, err = tl(
        "tune", *TINY, "freeze_strategy=full", "name=x", "optimizer.lr_factor=interval(1,2)", "tune.parallel=2",
        f"backbone.weights={tmp_path}/weights.safetensors",
    )  # fmt: skip
    assert code == 1
    assert "no more trials of digits, 2 shots, test_resnet (weights), linear, full: all of the first failed" in err
    assert err.count("error: ") == 2


def test_a_missing_optuna_is_one_line(tl, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, out, err = tl("tune", *TINY, "optimizer.lr_factor=interval(1,2)")
    assert (code, out) == (2, "")
    assert (
        err == "error: tl tune: optuna is not installed, or older than optuna 4 -> pip install 'tl-experiments[tune]'\n"
    )


def test_options_of_the_search_belong_to_the_verb(tl):
    assert "tune.trials: an option of the search -> tl tune" in tl("train", "tune.trials=3")[2]
    with pytest.raises(ConfigError, match="objectives: got"):
        compose(["tune.objectives=[]"], verb="tune")


def test_equal_proposals_count_each_and_run_once(tl, tmp_path):
    code, out, err = tl(
        "tune", *TINY, "freeze_strategy=feature_extraction", "name=x", "optimizer.lr_factor=1,30", "tune.trials=6",
        "tune.parallel=3",
    )  # fmt: skip
    assert code == 0, err
    assert "6 trials an arm" in words(out)
    assert sorted(one.config["optimizer"]["lr_factor"] for one in records(tmp_path / "outputs/x")) == [1, 30]
    assert err.count("] ok") == 2
