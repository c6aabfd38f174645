"""A sweep on SLURM ends like one on this machine, whatever happens to its jobs, its nodes and the command."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.sweeps import JOBS, SWEEP, finish, journals, ledger, results, training, turns, until
from tests.conftest import TINY

pytestmark = pytest.mark.cluster
ON_SLURM = ["executor=slurm", "executor.cpus_per_task=1", "executor.poll_s=1", "executor.time_min=60"]


def start(cluster, tmp_path, *overrides):
    out, log = tmp_path / "out", tmp_path / "log"
    own = [f"+executor.options.comment={tmp_path.name}", f"output_dir={out}", "name=x"]
    process = cluster.tl("train", "-m", *(overrides or SWEEP), *ON_SLURM, *own, log=log)
    return process, out, log


def running_on(cluster, node):
    """Jobs of SLURM that run there, as ``scontrol`` names them."""
    return cluster.run("squeue", "-h", "--array", "-t", "RUNNING", "-w", node, "-o", "%i").stdout.split()


def submitted(cluster, tmp_path):
    """Jobs that SLURM was ever given for a test, by the comment that they bear."""
    shown = cluster.run("squeue", "-h", "--array", "-t", "all", "-o", "%i %k").stdout.splitlines()
    return [line.split()[0] for line in shown if line.endswith(f" {tmp_path.name}")]


def restarted(cluster, *jobs):
    """Whether SLURM has put all of them back into the queue."""
    start_now(cluster)
    return all(" Restarts=1 " in cluster.run("scontrol", "show", "job", "-o", job).stdout for job in jobs)


def start_now(cluster):
    """Requeued jobs wait for a while; not in a test."""
    for job in cluster.run("squeue", "-h", "--array", "-t", "PENDING", "-o", "%i %r").stdout.splitlines():
        if job.endswith(" BeginTime"):
            cluster.run("scontrol", "update", f"jobid={job.split()[0]}", "StartTime=now")


def test_a_sweep_survives_a_requeue_and_a_lost_node(slurm, tmp_path, local_results):
    process, out, log = start(slurm, tmp_path)
    until(lambda: training(out), 120, process=process, log=log)
    (requeued, *_) = until(lambda: running_on(slurm, "n1"), 60, process=process, log=log)
    assert slurm.run("scontrol", "requeue", requeued).returncode == 0
    (lost, *_) = until(lambda: running_on(slurm, "n2"), 60, process=process, log=log)
    assert slurm.script("kill", "n2").returncode == 0
    until(lambda: restarted(slurm, requeued, lost), 120, process=process, log=log)
    slurm.start()
    while process.poll() is None:
        start_now(slurm)
        time.sleep(1)
    finish(process, log)
    assert len(submitted(slurm, tmp_path)) == JOBS
    assert sorted(turns(out).values())[-2:] == [2, 2]
    assert results(out) == local_results


def test_a_killed_command_picks_its_jobs_up(slurm, tmp_path, local_results):
    process, out, log = start(slurm, tmp_path)
    until(lambda: training(out), 120, process=process, log=log)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again, _, _ = start(slurm, tmp_path)
    finish(again, log)
    assert len(submitted(slurm, tmp_path)) == JOBS
    assert set(turns(out).values()) == {1}
    assert results(out) == local_results


def test_a_command_that_dies_before_it_has_an_answer_leaves_no_job_unknown(slurm, tmp_path):
    (sbatch := tmp_path / "bin" / "sbatch").parent.mkdir()
    real = f'{shutil.which("sbatch")} "$@"'
    sbatch.write_text(f'#!/bin/sh\ncase "$*" in *--test-only*) exec {real};; esac\n{real} >&2\nkill -9 $PPID\n')
    sbatch.chmod(0o755)
    environment = {**slurm.environment, "PATH": f"{sbatch.parent}:{os.environ['PATH']}"}
    comment, out = f"+executor.options.comment={tmp_path.name}", tmp_path / "out"
    arguments = (*TINY, "seed=0,1", "freeze_strategy=full", *ON_SLURM, comment, f"output_dir={out}", "name=x")
    command = [sys.executable, "-m", "tl_experiments", "train", "-m", *arguments]
    held = [*command, "+executor.options.hold=true"]
    assert subprocess.run(held, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert [task["handle"] for task in ledger(out)["tasks"]] == ["", ""]
    orphans = submitted(slurm, tmp_path)
    assert len(orphans) == 2
    status = slurm.run(sys.executable, "-m", "tl_experiments", "status", str(out / "x"))
    assert status.stdout.count("JobHeldUser") == 2
    again = subprocess.run(command, env=slurm.environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert not set(orphans) & set(slurm.run("squeue", "-h", "--array", "-o", "%i").stdout.split())


def processor_s():
    """Seconds for which the cores have worked, for anybody."""
    user, nice, system, _idle, _iowait, *interrupts = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8]
    )
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def test_a_hundred_jobs_are_submitted_in_five_seconds(slurm, tmp_path):
    """From the command line to the last job in the queue, imports included.

    Where others keep the machine busy, the command's processor time counts instead of the clock's.
    """
    before, others_before, began = resource.getrusage(resource.RUSAGE_CHILDREN), processor_s(), time.perf_counter()
    process, out, log = start(slurm, tmp_path, *TINY, "freeze_strategy=full,lp_ft", "seed=range(0,50)")
    until(lambda: sum(bool(task["handle"]) for task in ledger(out)["tasks"]) == 100, 60, process=process, log=log)
    wall, busy = time.perf_counter() - began, processor_s() - others_before
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    jobs = submitted(slurm, tmp_path)
    slurm.run("scancel", "--name=x")
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert len(jobs) == 100
    assert (own if busy - own > 0.5 * wall else wall) <= 5, f"{wall:.1f} s, of the processor {own:.1f} s"


def test_a_killed_job_is_noticed_without_accounting(slurm_without_accounting, tmp_path):
    cluster = slurm_without_accounting
    process, out, log = start(cluster, tmp_path, *TINY, "seed=0,1", "dataset.shots=10", "trainer.max_epochs=40")
    until(lambda: training(out), 120, process=process, log=log)
    (first, *_) = journals(out).values()
    os.kill(next(line["pid"] for line in first if line["event"] == "began"), signal.SIGKILL)
    assert process.wait(180) == 1
    states = [entry["state"] for entry in ledger(out)["jobs"]]
    assert sorted(states) == ["failed", "ok"]
    (cause,) = (entry["cause"] for entry in ledger(out)["jobs"] if entry["state"] == "failed")
    assert "killed by SIGKILL" in cause
