"""The trials of an arm: optuna's own, the same after every cut, and their Pareto front."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from tl_experiments.config import compose
from tl_experiments.seeds import derive
from tl_experiments.sweeps.pruning import STUDY_FILE, open_journal
from tl_experiments.tuning.studies import Search

SPACE = {
    "lr": FloatDistribution(1e-3, 1e1, log=True),
    "decay": FloatDistribution(0.0, 1.0),
    "batch": CategoricalDistribution(("8", "32")),
}


def settle(trial):
    lr = trial.suggest_float("lr", 1e-3, 1e1, log=True)
    return (f"{lr}", f"{trial.suggest_float('decay', 0.0, 1.0)}", trial.suggest_categorical("batch", ("8", "32")))


def accuracy(setting):
    """A toy with its best at lr=0.3, decay=0.2."""
    return 1 / (1 + math.log(float(setting[0]) / 0.3) ** 2 + (float(setting[1]) - 0.2) ** 2) - 0.1 * (setting[2] == "8")


def search(storage, *options, name="arm", settle=settle, defaults=()):
    tune = compose([f"tune.{option}" for option in options], verb="tune").tune
    return Search(storage, name, tune, 7, dict(defaults), settle)


def end(one, proposals):
    for proposal in proposals:
        one.tell(proposal, "ok", [accuracy(proposal.setting)])


def run(one):
    """All settings in their order."""
    while proposals := one.propose():
        end(one, proposals)
    return [one.setting(trial) for trial in one.ended]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_trials_are_those_of_optuna_alone(sampler):
    """A loop of ask and tell in rounds of 4, each number of each trial by a sampler of its own."""
    kinds = {
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({"lr": 1.0})
    expected = []
    for first in range(0, 22, 4):
        trials = []
        for number in range(first, min(first + 4, 22)):
            study.sampler = kinds[sampler](derive(7, "trial", number) % 2**32)
            trials.append(study.ask())
            assert trials[-1].relative_params.keys() <= SPACE.keys()  # those that are drawn together, now
            for name, distribution in SPACE.items():
                study.sampler = kinds[sampler](derive(7, "trial", number, name) % 2**32)
                trials[-1]._suggest(name, distribution)
        settings = [(str(trial.params["lr"]), str(trial.params["decay"]), trial.params["batch"]) for trial in trials]
        for trial, setting in zip(trials, settings, strict=True):
            study.tell(trial, accuracy(setting))
        expected += settings
    storage = optuna.storages.InMemoryStorage()
    found = run(search(storage, "trials=22", f"sampler={sampler}", defaults={"lr": 1.0}))
    assert found == expected
    assert found[0][0] == "1.0"
    assert len(set(found)) == 22


@pytest.fixture(scope="module")
def uncut():
    return run(search(optuna.storages.InMemoryStorage(), "trials=18", "parallel=4"))


class Cut(BaseException):
    """As a kill would come."""


@pytest.mark.parametrize("when", range(0, 18, 3))
def test_a_search_that_was_cut_goes_on_to_the_same_trials(tmp_path, uncut, when):
    """Cut while a trial is proposed, while its round runs, and while it is told."""
    calls = 0

    def settle_until(trial):
        nonlocal calls
        calls += 1
        if calls == when + 1:
            raise Cut
        return settle(trial)

    options = ("trials=18", "parallel=4")
    with pytest.raises(Cut):
        run(search(open_journal(tmp_path), *options, settle=settle_until))
    again = search(open_journal(tmp_path), *options)
    begun = again.propose()
    assert again.propose() == begun  # nothing was told: they run again
    again = search(open_journal(tmp_path), *options)
    end(again, again.propose()[:2])
    assert run(search(open_journal(tmp_path), *options)) == uncut


@pytest.mark.parametrize("number", [0, 13])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_cut_within_a_proposal_changes_no_trial(tmp_path, sampler, number):
    """The first number is drawn and kept; the rest is drawn by the command that goes on."""

    def half(trial):
        if trial.number < number:
            return settle(trial)
        trial.suggest_float("lr", 1e-3, 1e1, log=True)
        raise Cut

    options = ("trials=18", f"sampler={sampler}")
    with pytest.raises(Cut):
        run(search(open_journal(tmp_path), *options, settle=half))
    found = run(search(open_journal(tmp_path), *options))
    assert found == run(search(optuna.storages.InMemoryStorage(), *options))


def test_more_trials_go_on(tmp_path, uncut):
    assert run(search(open_journal(tmp_path), "trials=8")) == uncut[:8]
    assert run(search(open_journal(tmp_path), "trials=8")) == uncut[:8]
    assert run(search(open_journal(tmp_path), "trials=18")) == uncut


def test_arms_begin_with_the_same_trials(tmp_path, uncut):
    storage = open_journal(tmp_path)
    one, other = search(storage, "trials=18", name="one"), search(storage, "trials=18", name="other")
    assert one.propose() == one.propose()
    assert [proposal.setting for proposal in one.propose()] == [proposal.setting for proposal in other.propose()]


def test_what_failed_is_the_worst_and_what_was_pruned_is_told(tmp_path):
    storage = open_journal(tmp_path)
    one = search(storage, "trials=4")
    for proposal, state in zip(one.propose(), ("ok", "diverged", "pruned", "oom"), strict=True):
        one.tell(proposal, state, [0.5] if state == "ok" else [])
    (study,) = optuna.get_all_study_summaries(storage)
    trials = optuna.load_study(study_name=study.study_name, storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert [trial.value for trial in trials] == [0.5, 0.0, None, 0.0]
    assert [trial.user_attrs["state"] for trial in trials] == ["ok", "diverged", "pruned", "oom"]
    assert one.propose() == []


@pytest.mark.parametrize("objectives", ["[accuracy,seconds]", "[seconds,accuracy]"])
def test_the_front_is_that_of_a_search_over_all_pairs(objectives):
    one = search(optuna.storages.InMemoryStorage(), "trials=40", "parallel=8", f"objectives={objectives}")
    names = objectives.strip("[]").split(",")
    rng, points = np.random.default_rng(0), {}
    while proposals := one.propose():
        for proposal in proposals:
            reached = {"accuracy": rng.integers(0, 8) / 8, "seconds": float(rng.integers(1, 9))}  # with ties
            failed = proposal.number % 7 == 3
            one.tell(proposal, "diverged" if failed else "ok", [] if failed else [reached[name] for name in names])
            if not failed:
                points[proposal.number] = reached["accuracy"], reached["seconds"]
    assert len(one.ended) == 40
    expected = {
        number
        for number, (a, s) in points.items()
        if not any(b >= a and t <= s and (b > a or t < s) for b, t in points.values())
    }
    front = one.front()
    assert {trial.number for trial in front} == expected
    reached = [points[trial.number][0] for trial in front]
    assert reached == sorted(reached, reverse=True)


def test_an_unfinished_last_line_of_the_journal_is_mended(tmp_path, uncut):
    options = ("trials=18", "parallel=4")
    one = search(open_journal(tmp_path), *options)
    end(one, one.propose())
    with (tmp_path / STUDY_FILE).open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    assert run(search(open_journal(tmp_path, mend=True), *options)) == uncut


def test_the_journal_is_mended_when_nobody_writes(tmp_path):
    """Another machine, whose clock is an hour behind, is in the middle of a line."""
    run(search(open_journal(tmp_path), "trials=2"))
    path, lock = tmp_path / STUDY_FILE, tmp_path / f"{STUDY_FILE}.lock"
    whole = path.read_bytes()
    lock.touch()
    os.utime(lock, (time.time() - 3600,) * 2)
    line = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -len(line) // 2])
    with ThreadPoolExecutor() as threads:
        opened = threads.submit(open_journal, tmp_path, mend=True)
        time.sleep(0.5)
        path.write_bytes(whole)
        lock.unlink()
        opened.result()
    assert path.read_bytes() == whole


def test_a_damaged_journal_is_said_in_one_line(tmp_path):
    run(search(open_journal(tmp_path), "trials=2"))
    path = tmp_path / STUDY_FILE
    path.write_bytes(path.read_bytes().replace(b'"op_code"', b'op_code"', 1))
    with pytest.raises(Exception, match=r"study.journal: cannot be read .* -> choose another name=") as error:
        open_journal(tmp_path, mend=True)
    assert "\n" not in str(error.value)
