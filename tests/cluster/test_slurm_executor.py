"""What becomes of a job of SLURM: deaths, time limits, preemption, cancelling, a controller that is away."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time

import pytest

from tests.cluster.conftest import ROOT
from tests.conftest import TINY
from tests.sweeps import faulty
from tests.sweeps.test_sweep import faulty_job, job, metrics
from tl_experiments.sweeps import slurm_queue
from tl_experiments.sweeps.sweep import run_sweep

pytestmark = pytest.mark.cluster
ON_SLURM = ("executor=slurm", "executor.cpus_per_task=1", "executor.poll_s=0.5")
ENDLESS = (*TINY, "freeze_strategy=full", "dataset.shots=5", "trainer.max_epochs=1000000", *ON_SLURM)


@pytest.fixture
def login(slurm, monkeypatch, tmp_path):
    """The cluster, for which this process is on a login node."""
    monkeypatch.chdir(tmp_path)  # where jobs leave what a crash writes
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for jobs whose config is a class of the tests
    return slurm


def journal(out):
    """Lines of a sweep's only task."""
    found = list(out.glob("*/cluster/*.jsonl"))
    return [json.loads(line) for path in found for line in path.read_text().splitlines()]


def events(out, event):
    return [line for line in journal(out) if line["event"] == event]


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def entries(folder):
    return json.loads((folder / "sweep.json").read_text())["jobs"]


def test_every_death_is_named_and_the_others_end_as_on_this_machine(login, tiny, tmp_path):
    good = [job(tiny("freeze_strategy=full", *ON_SLURM))]
    options = (*TINY, "freeze_strategy=full", "executor.threads_per_job=1", f"output_dir={tmp_path}", "name=here")
    assert login.tl("train", *options, log=tmp_path / "log").wait(120) == 0
    kinds = {
        faulty.Raises: "RuntimeError: a bug",
        faulty.Exits: "exit code 3 before it was done (SLURM job ",
        faulty.ExitsAsIfAllWereWell: "exit(0) before it was done (SLURM job ",
        faulty.Killed: "killed by SIGKILL: out of memory? raise executor.memory_gb (SLURM job ",
        faulty.Segfaults: "killed by SIGSEGV (SLURM job ",
    }
    bad = [faulty_job(kind, tiny("freeze_strategy=full", *ON_SLURM)) for kind in kinds]
    outcome = run_sweep([*bad, *good], tmp_path / "there", "there")
    assert metrics(tmp_path / "there", good) == metrics(tmp_path / "here", good)
    assert (outcome.ok, len(outcome.bad)) == (1, len(kinds))
    for entry, cause in zip(outcome.bad, kinds.values(), strict=True):
        assert (entry.state, entry.cause[: len(cause)]) == ("failed", cause)
    # the accounts say the same, should the queue have forgotten them
    queued = slurm_queue.Queue()
    ids = ",".join(sorted({str(number) for number in range(1, 200)}))
    said = login.run("sacct", "-n", "-P", "--format=JobID,State,ExitCode", f"--jobs={ids}").stdout
    accounts = slurm_queue.sacct_conditions(said)
    ours = [entry.cause.rpartition(" ")[2].rstrip(")") for entry in outcome.bad if "SLURM job" in entry.cause]
    assert len(ours) == 4
    assert {handle: accounts[handle] for handle in ours} == queued.conditions(ours)


def test_a_group_that_dies_is_tried_again_in_halves(login, tiny, tmp_path):
    """Three heads are one task; one kills its process once."""
    good = [job(tiny(f"optimizer.lr_factor={factor}", *ON_SLURM)) for factor in (1, 2)]
    bad = faulty_job(faulty.KilledInCompany, tiny("optimizer.lr_factor=4", *ON_SLURM))
    outcome = run_sweep([*good, bad], tmp_path / "sweep", "sweep")
    assert (outcome.ok, outcome.bad) == (3, ())
    assert len(list((tmp_path / "sweep" / "cluster").glob("*.jsonl"))) == 3


def test_a_job_goes_on_after_its_time_limit_as_often_as_is_allowed(login, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    limits = (
        "executor.time_min=1",
        "executor.signal_delay_s=10",
        "executor.max_requeues=1",
        "executor.cpus_per_task=2",
    )
    process = login.tl("train", *ENDLESS, *limits, f"output_dir={out}", "name=limit", log=log)
    until(lambda: events(out, "left"))  # by SLURM, some time before the minute is over
    until(lambda: len(events(out, "began")) == 2)
    until(lambda: [line["event"] for line in journal(out)][-1] == "progress")
    (handle,) = (task["handle"] for task in json.loads((out / "limit" / "sweep.json").read_text())["tasks"])
    login.run("scancel", "--signal=USR2", handle)  # the second time without waiting
    assert process.wait(120) == 1
    first, second, last = events(out, "left")
    (entry,) = entries(out / "limit")
    assert first["cause"].startswith("SIGUSR2 after step ")
    assert step(second) > step(first) > 0  # it went on from its resume point
    assert (entry["state"], entry["cause"]) == ("interrupted", last["cause"])
    assert "executor.time_min=1 in each turn that executor.max_requeues allows" in last["cause"]
    cores = login.run("sacct", "-n", "-P", "--format=AllocCPUS", f"--jobs={handle}.0").stdout.split()
    assert set(cores) == {"2"}


def step(line):
    """Of ``SIGUSR2 after step 12 of 40; run it again``."""
    return int(line["cause"].split(" after step ")[1].split()[0])


@pytest.mark.parametrize("partition", ["debug", "grace"])
def test_a_preempted_job_waits_and_goes_on(login, tmp_path, partition):
    """In ``grace`` SLURM gives time to end, and would take the end for good."""
    out, log = tmp_path / "out", tmp_path / "log"
    place = (f"executor.partition={partition}", "+executor.options.nodelist=n1", "executor.cpus_per_task=2")
    process = login.tl("train", *ENDLESS, *place, f"output_dir={out}", "name=preempted", log=log)
    until(lambda: events(out, "progress"))
    assert (
        login.run("sbatch", "-p", "urgent", "-w", "n1", "-c", "2", "-o", "/dev/null", "--wrap", "true").returncode == 0
    )
    until(lambda: len(events(out, "began")) == 2)
    (left,) = events(out, "left")
    assert left["cause"].startswith("SIGTERM after step ")
    until(lambda: [line["event"] for line in journal(out)][-1] == "progress")
    login.run("scancel", "--name=preempted")
    assert process.wait(60) == 1
    (entry,) = entries(out / "preempted")
    assert entry["state"] == "interrupted"
    assert entry["cause"].startswith("SIGTERM after step ")


def test_cancelled_jobs_are_left_to_the_next_command(login, tiny, tmp_path, caplog):
    """Two heads are one task, which is not tried again in halves: neither of them is to blame."""
    caplog.set_level(logging.WARNING, "tl_experiments")
    held = (*ON_SLURM, "+executor.options.hold=true")
    jobs = [job(tiny(strategy, *held)) for strategy in ("seed=0", "optimizer.lr_factor=2", "freeze_strategy=full")]

    def cancel():
        until(lambda: (tmp_path / "held" / "sweep.json").exists() and len(caplog.messages) > 0)
        login.run("scancel", "--name=held")

    thread = threading.Thread(target=cancel)
    thread.start()
    outcome = run_sweep(jobs, tmp_path / "held", "held")
    thread.join()
    assert [message for message in caplog.messages if "JobHeldUser" in message] == caplog.messages[:1]
    assert {entry.state for entry in outcome.bad} == {"interrupted"}
    assert len(outcome.bad) == 3
    assert login.run("squeue", "-h", "--name=held").stdout == ""


def test_a_controller_that_is_away_ends_nothing(login, tiny, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "tl_experiments")
    (controller,) = login.processes("slurmctld")

    def stop_and_start():
        until(lambda: list(tmp_path.glob("away/cluster/*.jsonl")))
        os.kill(controller, signal.SIGTERM)
        until(lambda: any("squeue" in message for message in caplog.messages))
        login.start()

    thread = threading.Thread(target=stop_and_start)
    thread.start()
    outcome = run_sweep([job(tiny("freeze_strategy=full", "trainer.max_epochs=20", *ON_SLURM))], tmp_path / "away", "a")
    thread.join()
    assert (outcome.ok, outcome.bad) == (1, ())
    assert len([message for message in caplog.messages if "squeue" in message]) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("executor.partition=nope", "invalid partition specified: nope; Invalid partition name specified -> "
         "change executor.partition"),
        ("trainer.accelerator=auto", "Invalid generic resource (gres) specification -> change executor.gpus_per_node"),
        ("executor.constraint=a100", "Invalid feature specification -> change executor.constraint"),
        ("+executor.options.foo=1", "unrecognized option '--foo=1'; Try \"sbatch --help\" for more information -> "
         "change executor.options"),
    ],
)  # fmt: skip
def test_what_sbatch_refuses_is_one_line_and_leaves_nothing(login, tmp_path, override, message):
    out, log = tmp_path / "out", tmp_path / "log"
    process = login.tl("train", *TINY, *ON_SLURM, override, f"output_dir={out}", "name=x", log=log)
    assert process.wait(60) == 2
    assert log.read_text() == f"error: executor=slurm: sbatch: {message}\n"
    assert not any(out.glob("*"))
