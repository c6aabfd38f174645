"""Commands that end before their tasks, on a cluster of processes: followed again, cancelled, never doubled."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.sweeps.processes import KILLED_WHILE_SUBMITTING, ON_PROCESSES, Processes, is_alive, put_in_place
from tests.sweeps.scripted import turn
from tests.sweeps.test_sweep import job, metrics
from tl_experiments.sweeps.journal import journal_path, lock_path
from tl_experiments.sweeps.ledger import Ledger
from tl_experiments.sweeps.local import server
from tl_experiments.sweeps.remote import work_remotely
from tl_experiments.sweeps.sweep import run_sweep
from tl_experiments.sweeps.tasks import Task

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
SLOW = ["freeze_strategy=full", "trainer.max_epochs=2000", "dataset.shots=5"]
SHORT = ["freeze_strategy=full", "trainer.max_epochs=20", "dataset.shots=5"]


@pytest.fixture
def out(tmp_path):
    yield tmp_path
    if (tmp_path / "x" / "sweep.json").exists():
        for task in Ledger.open(tmp_path / "x").tasks.values():
            Processes().cancel([task.handle])


def command(out, *overrides, sweep=("-m", "seed=0,1")):
    tl = [sys.executable, "-m", "tests.sweeps.processes"]
    return [*tl, "train", *TINY, "name=x", f"output_dir={out}", *ON_PROCESSES, *overrides, *sweep]


def start(line, log, **environment):
    """Its errors go into a file: a pipe would stay open as long as its tasks."""
    with log.open("w") as stream:
        return subprocess.Popen(
            line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip


def tl(*arguments):
    line = [sys.executable, "-m", "tests.sweeps.processes", *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def jobs_at_work(out):
    return len([path for path in out.glob("x/*/metrics.jsonl") if path.stat().st_size])


def is_told_to_end(pid):
    """Whether SIGTERM waits for a stopped process."""
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def began(out):
    lines = [json.loads(line) for path in out.glob("x/cluster/*.jsonl") for line in path.read_text().splitlines()]
    return [line["pid"] for line in lines if line["event"] == "began"]


def test_ctrl_c_leaves_the_tasks_and_tl_cancel_ends_them(out):
    first = start(command(out, *SLOW), out / "first")
    wait_for(lambda: jobs_at_work(out) == 2)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does
    assert first.wait(60) == 130
    errors = (out / "first").read_text()
    assert re.search(r"submitted 2 tasks to processes as \d+ \.\.\. \d+; Ctrl-C leaves them there, tl status", errors)
    assert errors.splitlines()[-1] == (
        f"detached: 2 tasks go on at processes: the same command again follows them, tl status {out}/x shows them, "
        f"tl cancel {out}/x ends them"
    )
    handles = [task.handle for task in Ledger.open(out / "x").tasks.values()]
    assert all(map(is_alive, handles))

    code, shown, _ = tl("status", out / "x", "--json")
    assert code == 0
    assert [(one["state"], one["handle"]) for one in json.loads(shown)["jobs"]] == [("running", one) for one in handles]
    wait_for(lambda: all(one["step"] for one in json.loads(tl("status", out / "x", "--json")[1])["jobs"]), 30)

    code, said, errors = tl("cancel", out / "x", "--jobs", "seed=1")
    assert (code, errors) == (0, "")
    assert said == f"cancelled 1 task of 1 job; the same command runs them again, from their resume points: {out}/x\n"
    wait_for(lambda: not is_alive(handles[1]))
    assert is_alive(handles[0])
    assert [entry.state for entry in Ledger.open(out / "x").jobs.values()] == ["running", "interrupted"]

    second = start(command(out, *SLOW), out / "second")  # follows the one and submits the other again
    wait_for(lambda: len(set(began(out))) == 2 and handles[1] not in map(str, began(out)))
    assert str(began(out)).count(handles[0]) == 1
    code, said, errors = tl("cancel", out / "x")  # now with a command that follows them
    assert (code, errors) == (0, "")
    assert said.startswith("cancelled 2 tasks of 2 jobs")
    assert second.wait(60) == 143
    errors = (out / "second").read_text()
    assert errors.splitlines()[-1].startswith("cancelled: 2 tasks on processes, by tl cancel: the same command again")
    assert [(one.state, one.cause) for one in Ledger.open(out / "x").jobs.values()] == [
        ("interrupted", "cancelled; run it again")
    ] * 2
    wait_for(lambda: not any(is_alive(pid) for pid in began(out)))
    assert list(out.glob("x/*/resume-*.pt"))
    assert tl("cancel", out / "x")[:2] == (0, f"nothing runs: {out}/x\n")


def test_a_killed_command_is_taken_up_by_the_next(out):
    first = start(command(out, *SHORT), out / "first")
    wait_for(lambda: jobs_at_work(out) >= 1)
    handles = [task.handle for task in Ledger.open(out / "x").tasks.values()]
    for pid in handles:
        os.kill(int(pid), signal.SIGSTOP)
    first.kill()
    first.wait()
    second = start(command(out, *SHORT), out / "second")
    said = f"following 2 tasks on processes as {handles[0]} ... {handles[1]}, submitted 20"
    wait_for(lambda: said in (out / "second").read_text())
    for pid in handles:
        os.kill(int(pid), signal.SIGCONT)
    assert second.wait(120) == 0
    assert sorted(map(str, began(out))) == sorted(handles)
    ledger = Ledger.open(out / "x")
    assert [entry.state for entry in ledger.jobs.values()] == ["ok", "ok"]
    assert ledger.tasks == {}


def test_a_command_that_is_killed_while_it_submits_doubles_nothing(out):
    first = start(command(out, *SHORT, sweep=()), out / "first", **{KILLED_WHILE_SUBMITTING: "1"})
    assert first.wait(60) == -signal.SIGKILL
    (task,) = Ledger.open(out / "x").tasks.values()
    assert task.handle == ""
    wait_for(lambda: jobs_at_work(out) == 1)
    (orphan,) = began(out)
    os.kill(orphan, signal.SIGSTOP)
    second = start(command(out, *SHORT, sweep=()), out / "second")  # ends it, and submits the task again
    wait_for(lambda: is_told_to_end(orphan))
    os.kill(orphan, signal.SIGCONT)
    assert second.wait(120) == 0
    assert not is_alive(orphan)
    assert len(began(out)) == 1
    (log,) = out.glob("x/*/job.log")
    assert log.read_text().count("data      digits") == 2
    assert [entry.state for entry in Ledger.open(out / "x").jobs.values()] == ["ok"]


def test_two_turns_of_a_task_compute_it_once(tiny, tmp_path, monkeypatch):
    """As after a node was lost and found again."""
    put_in_place(Processes(turns=2), monkeypatch.setattr)
    options = ("freeze_strategy=full", "trainer.max_epochs=20")
    there = [job(tiny(*options, *ON_PROCESSES))]
    outcome = run_sweep(there, tmp_path / "there", "there")
    assert (outcome.ok, outcome.bad) == (1, ())
    here = run_sweep([job(tiny(*options, "executor.threads_per_job=1"))], tmp_path / "here", "here")
    assert here.ok == 1
    assert metrics(tmp_path / "there", there) == metrics(tmp_path / "here", there)
    log = (tmp_path / "there" / there[0].id / "job.log").read_text()
    assert "waiting for process" in log
    assert log.count("data      digits") == 1


def test_the_second_stage_of_tuning_comes_after_a_detachment_too(out):
    options = [*SHORT, "tuning_seed=0"]
    sweep = ("-m", "seed=0,1", "optimizer.lr_factor=0.1,1")
    first = start(command(out, *options, sweep=sweep), out / "first")
    wait_for(lambda: jobs_at_work(out) >= 1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 143
    errors = (out / "first").read_text()
    assert errors.splitlines()[-1].startswith("detached: ")
    assert [one.state for one in Ledger.open(out / "x").jobs.values()].count("skipped") == 2
    second = start(command(out, *options, sweep=sweep), out / "second")
    assert second.wait(120) == 0
    ledger = Ledger.open(out / "x")
    assert sorted(one.state for one in ledger.jobs.values()) == ["ok", "ok", "ok", "unchosen"]
    assert len(began(out)) == 3


def in_a_process(task, folder):
    """A turn of the task, to its end; returns the exit code."""
    process = server(alone=True).Process(target=work_remotely, args=(task, folder, 1, "a turn"))
    process.start()
    process.join(120)
    return process.exitcode


def test_a_later_turn_leaves_alone_what_an_earlier_one_saw_end(tiny, tmp_path):
    jobs = [job(tiny(f"optimizer.lr_factor={factor}")) for factor in (1, 2)]
    task = Task(tuple(jobs))
    turn(tmp_path, task).send(("ended", 0, "diverged", "loss is nan", 1.0))
    assert in_a_process(task, tmp_path) == 0
    assert [(tmp_path / one.id / "record.json").exists() for one in jobs] == [False, True]
    journal = journal_path(tmp_path, task.id)
    assert [json.loads(line)["event"] for line in journal.read_text().splitlines() if "progress" not in line] == [
        "began", "ended", "began", "ended", "over",
    ]  # fmt: skip
    (tmp_path / jobs[1].id / "record.json").unlink()
    before = journal.read_text()
    assert in_a_process(task, tmp_path) == 0
    assert journal.read_text() == before


def test_a_task_that_was_taken_for_dead_ends_without_a_record(tiny, tmp_path):
    one = job(tiny("freeze_strategy=full", "trainer.max_epochs=2000", "dataset.shots=5"))
    process = server(alone=True).Process(target=work_remotely, args=(Task((one,)), tmp_path, 1, "a turn"))
    process.start()
    lock = lock_path(tmp_path, one.id)
    wait_for(lock.exists)
    lock.write_text('{"host": "elsewhere", "pid": 1, "started": 5, "since": 0.0}')
    process.join(60)
    assert process.exitcode == 1
    assert not (tmp_path / one.id / "record.json").exists()
    assert "another one goes on with its task" in (tmp_path / one.id / "job.log").read_text()
    assert "elsewhere" in lock.read_text()
