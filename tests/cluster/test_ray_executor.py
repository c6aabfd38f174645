"""How ``executor=ray`` treats the cluster and its user: queue, deaths, Ctrl-C, and what is left afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.cluster.conftest import OUTSIDE, naming
from tests.cluster.sweeps import ledger, training, turns, until
from tests.conftest import TINY

pytestmark = pytest.mark.cluster

LONG_S = 300.0  # four processes that import torch at once on two cores
ENDLESS = [*TINY, "freeze_strategy=full", "dataset.shots=5", "trainer.max_epochs=9999", "trainer.resume_interval_s=0"]
RAY = ["executor=ray", "executor.cpus_per_task=1", "executor.poll_s=0.5"]
ASK = """
import json, sys
from tl_experiments.sweeps.executors import cluster_of
cluster, handles = cluster_of(sys.argv[1]), sys.argv[2:]
before = cluster.conditions(handles)
cluster.cancel(handles)
after = cluster.conditions(handles)
print(json.dumps([[[one[handle].state, one[handle].detail] for handle in handles] for one in (before, after)]))
"""


def start(cluster, tmp_path, *arguments):
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = [*ENDLESS, *RAY, "executor.address=auto", f"output_dir={out}", "name=x", *arguments]
    return cluster.tl("train", "-m", *arguments, log=log), out, log


def causes(out):
    return {entry["id"]: (entry["state"], entry["cause"]) for entry in ledger(out)["jobs"]}


def ask(cluster, out):
    """What another process hears of the tasks and, when it has cancelled them, again."""
    tasks = ledger(out)["tasks"]
    done = cluster.run(sys.executable, "-c", ASK, tasks[0]["cluster"], *(task["handle"] for task in tasks))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def worker(out, task):
    """The process of the task's latest turn."""
    lines = (out / "x" / "cluster" / f"{task}.jsonl").read_text().splitlines()
    return [json.loads(line)["pid"] for line in lines if '"began"' in line][-1]


def test_a_task_that_is_killed_every_time_says_so(ray_cluster, tmp_path):
    process, out, log = start(ray_cluster, tmp_path, "seed=0", "executor.max_retries=1")
    until(lambda: list((out / "x").glob("*/resume-*.pt")), LONG_S, process=process, log=log)
    (task,) = turns(out)
    os.kill(worker(out, task), signal.SIGKILL)
    until(lambda: "resuming" in (out / "x" / task / "job.log").read_text(), LONG_S, process=process, log=log)
    os.kill(worker(out, task), signal.SIGKILL)
    assert process.wait(60) == 1, log.read_text()
    ((state, cause),) = causes(out).values()
    assert (state, cause.split("?")[0]) == ("failed", "killed after 1 retry: out of memory")
    assert turns(out) == {task: 2}
    assert "raylet" not in log.read_text()


def test_ctrl_c_leaves_the_tasks_and_another_process_ends_them(ray_cluster, tmp_path):
    """64 of them, of which the two nodes take four at once."""
    process, out, log = start(ray_cluster, tmp_path, f"seed={','.join(map(str, range(64)))}")
    until(lambda: len(training(out)) == 4, LONG_S, process=process, log=log)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert "detached: 64 tasks go on at ray " in log.read_text()
    before, after = ask(ray_cluster, out)
    assert sorted(state for state, _ in before) == ["running"] * 4 + ["waiting"] * 60
    assert after == [["ended", "cancelled"]] * 64
    assert len(list((out / "x").glob("*/resume-*.pt"))) >= 4
    assert not [command for command in naming(out).values() if "ray::" in command]
    again, _, _ = start(ray_cluster, tmp_path, f"seed={','.join(map(str, range(64)))}")
    assert again.wait(120) == 1, log.read_text()
    found = list(causes(out).values())
    assert sum("SIGUSR1 after step" in cause for _, cause in found) == 4
    assert found.count(("interrupted", "cancelled; run it again")) == 60


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_cluster_of_the_command_ends_with_it(new_folder, tmp_path, signum):
    out, log = tmp_path / "out", tmp_path / "log"
    home = tmp_path / "home"
    home.mkdir()
    options = [*ENDLESS, *RAY, f"executor.temp_dir={new_folder}", f"output_dir={out}", "name=x", "seed=0,1,2,3"]
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tl_experiments", "train", "-m", *options],
            env={**OUTSIDE, "HOME": str(home)}, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
    until(lambda: training(out), LONG_S, process=process, log=log)
    assert naming(new_folder)
    os.killpg(process.pid, signum) if signum == signal.SIGINT else process.kill()
    assert process.wait(60) == (130 if signum == signal.SIGINT else -9), log.read_text()
    until(lambda: not naming(new_folder), 20)
    assert not (home / ".ray").exists()
    if signum == signal.SIGINT:
        states = [state for state, _ in causes(out).values()]
        assert set(states) <= {"interrupted", "skipped"}
        assert any("after step" in cause for _, cause in causes(out).values())
        assert ledger(out)["tasks"] == []
        assert [path.name for path in new_folder.iterdir() if path.is_dir() and not path.is_symlink()] == []
