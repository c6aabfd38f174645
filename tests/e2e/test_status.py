"""tl status, tl logs and tl cancel on folders as commands leave them."""

from __future__ import annotations

import json
import platform
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import TINY
from tests.sweeps.processes import put_in_place
from tests.sweeps.scripted import GONE, RUNNING, WAITING, Scripted, record, turn
from tl_experiments.errors import UserError
from tl_experiments.sweeps import claims, executors
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.ledger import Entry, Ledger, Submitted
from tl_experiments.sweeps.lock import running_here
from tl_experiments.sweeps.tasks import Task


@pytest.fixture
def sweep(tmp_path, tiny):
    """Two jobs of one task, and one each that waits, has failed, is done and was not come to."""
    folder = tmp_path / "outputs" / "x"
    ledger = Ledger(folder, ["tl train -m ..."])
    states = ["running", "running", "submitted", "failed", "ok", "skipped"]
    for seed, state in enumerate(states):
        one = Entry(f"{seed}abc", ["optimizer.lr_factor=3", f"seed={seed}"], state)
        ledger.jobs[one.id] = one
        if state == "failed":
            one.cause, one.log, one.seconds = "RuntimeError: a bug", f"{one.id}/job.log", 2.0
            (folder / one.id).mkdir(parents=True)
            (folder / one.log).write_text("".join(f"line {n}\n" for n in range(40)) + "50%\r100%\rdone \x1b[31mred\n")
        if state == "skipped":
            one.cause = "the command ended before its turn; run it again"
    group = Task(tuple(Job(f"{seed}abc", (), tiny()) for seed in (0, 1)))
    ledger.tasks[group.id] = Submitted(group.id, ["0abc", "1abc"], "scripted", True, "7", group.log, 0.0)
    ledger.tasks["2abc"] = Submitted("2abc", ["2abc"], "scripted", True, "8", "2abc/job.log", 0.0)
    ledger.jobs["0abc"].log = ledger.jobs["1abc"].log = group.log
    ledger.jobs["2abc"].log = "2abc/job.log"
    record(folder, Job("4abc", (), tiny()))
    turn(folder, group, "node7").send(("progress", 1, 30, 100))
    ledger.write()
    return folder


@pytest.fixture
def cluster(sweep, monkeypatch):
    found = Scripted(sweep, *[lambda _: None] * 9)
    found.says = {"7": RUNNING, "8": WAITING}
    put_in_place(found, monkeypatch.setattr)
    return found


def as_it_was(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_status_shows_every_job_and_changes_nothing(tl, sweep, cluster):
    before = as_it_was(sweep)
    code, out, err = tl("status", sweep)
    assert (code, err) == (0, "")
    assert [re.split(r"  +", line.strip()) for line in out.splitlines()] == [
        ["running", "seed=1 and 1 more", "scripted 7, node7, step 30 of 100", f"logs/{log_id(sweep)}.log"],
        ["submitted", "seed=2", "scripted 8, Priority"],
        ["failed", "seed=3", "RuntimeError: a bug, 2.0 s", "3abc/job.log"],
        ["ok", "seed=4"],
        ["skipped", "seed=5", "the command ended before its turn; run it again"],
        [f"{sweep}: 6 jobs: 2 running, 1 submitted, 1 failed, 1 ok, 1 skipped"],
        ["no command runs in it"],
    ]
    jobs = json.loads(tl("status", sweep, "--json")[1])["jobs"]
    assert [(one["step"], one["steps"], one["handle"]) for one in jobs[:3]] == [
        (None, None, "7"), (30, 100, "7"), (None, None, "8")
    ]  # fmt: skip
    assert jobs[3]["log"] == str(sweep / "3abc/job.log")
    assert as_it_was(sweep) == before


def log_id(folder):
    return next(name for name in Ledger.open(folder).tasks if name != "2abc")


def test_status_tells_an_end_that_no_command_has_entered(tl, sweep, cluster, tiny):
    for name in ("0abc", "1abc"):
        record(sweep, Job(name, (), tiny()))
    out = tl("status", sweep)[1]
    assert "3 ok" in out
    assert "note: 2 of them ended since: the same command again enters them" in out


def test_status_where_the_cluster_cannot_be_asked(tl, sweep, monkeypatch):
    def unreachable(name):
        raise UserError("slurm", "sbatch is not installed here", "call it on a login node")

    monkeypatch.setattr(claims, "cluster_of", unreachable)
    code, out, _ = tl("status", sweep)
    assert code == 0
    assert "node7, but its process shows no sign of life, step 30 of 100" in out
    assert out.count("sbatch is not installed here") == 1
    assert "submitted  seed=2" in out


def test_status_of_many_jobs_names_those_that_run_or_failed(tl, sweep, cluster):
    ledger = Ledger.open(sweep)
    for number in range(300):
        state = "failed" if number < 70 else "pending"
        ledger.jobs[f"x{number}"] = Entry(f"x{number}", [f"seed={number + 10}"], state, f"cause {number}")
    ledger.write()
    with running_here(sweep):
        lines = tl("status", sweep)[1].splitlines()
        assert len(tl("status", sweep, "--all")[1].splitlines()) == 306 + 2
    assert len(lines) == 60 + 3
    assert lines[60] == "and 12 more: --all"
    assert "230 pending" in lines[61]
    assert lines[62].startswith("run by process")


def test_a_command_that_was_killed_is_no_running_job(tl, tmp_path):
    ledger = Ledger(tmp_path, jobs={"a": Entry("a", ["seed=1"], "running"), "b": Entry("b", ["seed=2"])})
    ledger.write()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 5, "epoch": 1.0}\n{"step": 9, "epoch": 2.0}\n{"torn')
    (tmp_path / "a" / "start.json").write_text('{"config": {"trainer": {"max_epochs": 20}}}')
    out = tl("status", tmp_path)[1]
    assert "interrupted  seed=1  the command was killed; run it again" in out
    assert "skipped      seed=2" in out
    with running_here(tmp_path):
        assert "running  seed=1  epoch 2 of 20" in tl("status", tmp_path)[1]


@pytest.mark.parametrize("verb", ["status", "logs", "cancel"])
def test_what_is_no_sweep_is_said_in_a_line(tl, sweep, verb):
    for folder, said in {
        "missing": "no such folder -> give the folder of a sweep",
        sweep / "3abc": f"no sweep.json in it -> give {sweep}",
        sweep.parent: f"no sweep.json in it -> give {sweep}",
    }.items():
        code, out, err = tl(verb, folder)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    code, out, _ = tl(verb, "--help")
    assert code == 0
    assert f"  tl {verb} outputs/" in out.splitlines()[4]


def test_the_verbs_come_at_once(tl, sweep):
    """Without a cluster that must be asked nothing of the framework is imported."""
    code = (
        "import sys; from tl_experiments.commands import cancelling, logs, status; from tl_experiments.sweeps import "
        "cancelling, survey; print(*{'torch', 'hydra', 'omegaconf', 'numpy', 'PIL', 'rich'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_logs(tl, sweep):
    code, out, _ = tl("logs", sweep)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"seed=3: failed: RuntimeError: a bug: {sweep}/3abc/job.log"
    assert lines[1:] == [*(f"  line {n}" for n in range(26, 40)), "  done [31mred"]
    assert tl("logs", sweep, "3a", "--tail", "2")[1] == "line 39\ndone [31mred\n"
    assert len(tl("logs", sweep, "seed=3")[1].splitlines()) == 41
    assert tl("logs", sweep, "lr_factor=3 seed=3", "--tail", "1")[1] == "done [31mred\n"
    assert "9abc: no job of" in tl("logs", sweep, "9abc")[2]
    assert "fits 3 logs: 0abc (seed=0), 2abc (seed=2), 3abc (seed=3)" in tl("logs", sweep, "lr_factor=3")[2]
    assert "no log, expected one of a job that has begun, not skipped" in tl("logs", sweep, "seed=5")[2]
    assert "not there yet" in tl("logs", sweep, "seed=2")[2]
    assert tl("logs", sweep, "seed=30")[0] == 2


def test_a_log_is_followed_until_its_job_has_ended(tl, sweep, tiny):
    log = sweep / "2abc" / "job.log"
    log.parent.mkdir()
    log.write_text("one\ntw")

    def go_on():
        time.sleep(1)
        with log.open("a") as stream:
            stream.write("o\nthree\n")
        record(sweep, Job("2abc", (), tiny()))

    thread = threading.Thread(target=go_on)
    thread.start()
    assert tl("logs", sweep, "seed=2", "--follow")[:2] == (0, "one\ntwo\nthree\n")
    thread.join()


def test_a_log_of_a_task_that_died_without_a_word_has_an_end(tl, sweep, cluster):
    log = sweep / "2abc" / "job.log"
    log.parent.mkdir()
    log.write_text("one\n")
    cluster.says["8"] = GONE
    assert tl("logs", sweep, "seed=2", "--follow")[:2] == (0, "one\n")


def test_cancel_without_a_command_that_follows(tl, sweep, cluster):
    code, _, err = tl("cancel", sweep, "--jobs", "seed=7")
    assert (code, "seed=7: no job of" in err) == (2, True)
    assert tl("cancel", sweep, "--jobs", "seed=3")[1] == f"none of these jobs runs: {sweep}\n"
    code, out, _ = tl("cancel", sweep, "--jobs", "seed=1")
    assert (code, cluster.cancelled) == (0, ["7"])
    assert out.startswith("cancelled 1 task of 2 jobs")  # which are trained together
    states = [entry.state for entry in Ledger.open(sweep).jobs.values()]
    assert states == ["interrupted", "interrupted", "submitted", "failed", "ok", "skipped"]
    assert list(Ledger.open(sweep).tasks) == ["2abc"]


def test_cancel_where_the_cluster_is_gone(tl, sweep, monkeypatch):
    def unreachable(name):
        raise UserError("ray 10.0.0.1:6379", "does not answer", "start it")

    monkeypatch.setattr(executors, "cluster_of", unreachable)
    code, _, err = tl("cancel", sweep)
    assert code == 1
    assert "2 tasks of 3 jobs on ray 10.0.0.1:6379: does not answer -> tl cancel where scripted can be reached" in err
    assert len(Ledger.open(sweep).tasks) == 2
    assert tl("cancel", sweep, "--forget")[0] == 0
    assert Ledger.open(sweep).tasks == {}
    assert [one.state for one in Ledger.open(sweep).jobs.values()][:3] == ["interrupted"] * 3


def test_cancel_of_a_sweep_of_this_machine(tl, tmp_path):
    slow = [*TINY, "freeze_strategy=full", "trainer.max_epochs=2000", "dataset.shots=5", f"output_dir={tmp_path}"]
    line = [sys.executable, "-m", "tl_experiments", "train", "-m", *slow, "name=x", "seed=0,1"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("x/*/metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        out = tl("status", tmp_path / "x")[1]
        assert re.search(rf"run by process {process.pid} on {re.escape(platform.node())} since 20", out)
        assert (
            "--jobs: this sweep runs as processes of one command" in tl("cancel", tmp_path / "x", "--jobs", "seed=0")[2]
        )
        code, out, _ = tl("cancel", tmp_path / "x")
        assert (code, process.wait(60)) == (0, 128 + signal.SIGTERM)
    finally:
        process.kill()
    assert out.startswith(f"ended process {process.pid}; the same command runs them again")
    states = {entry.state for entry in Ledger.open(tmp_path / "x").jobs.values()}
    assert states <= {"interrupted", "skipped"}


def test_a_command_on_another_machine_is_named(tl, sweep, monkeypatch):
    ledger = Ledger.open(sweep)
    ledger.tasks = {}
    ledger.write()
    monkeypatch.setattr("tl_experiments.cache.locks._host", lambda: "node9 boot space")
    with running_here(sweep):
        monkeypatch.undo()
        monkeypatch.chdir(sweep.parent)
        code, _, err = tl("cancel", sweep)
    assert code == 2
    assert re.search(r"is run by process \d+ on node9 since .*, not on this machine -> tl cancel .* on node9", err)
