"""A sweep on Ray ends like one on this machine, whatever happens to its processes, its nodes and the command."""

from __future__ import annotations

import os
import signal

import pytest

from tests.cluster.sweeps import JOBS, SWEEP, finish, journals, ledger, results, training, turns, until

pytestmark = pytest.mark.cluster
ON_RAY = ["executor=ray", "executor.address=auto", "executor.cpus_per_task=1", "executor.poll_s=1"]


def start(cluster, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    process = cluster.tl("train", "-m", *SWEEP, *ON_RAY, f"output_dir={out}", "name=x", log=log)
    return process, out, log


def at_work(out):
    """Task id -> the process that has begun it and not ended."""
    return {
        task: [line["pid"] for line in lines if line["event"] == "began"][-1]
        for task, lines in journals(out).items()
        if not any(line["event"] == "over" for line in lines)
    }


def on_second_node(cluster, out):
    """Tasks that run on the node that will be killed."""
    there = set(cluster.processes(TL_RAY_NODE="second"))
    return [task for task, pid in at_work(out).items() if pid in there]


def test_a_sweep_survives_a_killed_worker_and_a_lost_node(ray_cluster, tmp_path, local_results):
    process, out, log = start(ray_cluster, tmp_path)
    until(lambda: training(out), 120, process=process, log=log)
    task, worker = next(iter(at_work(out).items()))
    os.kill(worker, signal.SIGKILL)  # it is tried again when its turn comes, behind those that wait
    hit = until(lambda: on_second_node(ray_cluster, out), 60, process=process, log=log)
    before = turns(out)
    assert ray_cluster.script("kill").returncode == 0
    ray_cluster.start()
    finish(process, log)
    after = turns(out)
    assert after[task] > 1
    assert any(after[other] > before[other] for other in hit)
    assert results(out) == local_results


def test_a_killed_command_picks_its_tasks_up(ray_cluster, tmp_path, local_results):
    process, out, log = start(ray_cluster, tmp_path)
    until(lambda: training(out), 120, process=process, log=log)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    handles = {task["id"]: task["handle"] for task in ledger(out)["tasks"]}
    assert len(handles) == JOBS
    again, _, _ = start(ray_cluster, tmp_path)
    finish(again, log)
    assert set(turns(out).values()) == {1}, "tasks were submitted a second time"
    assert results(out) == local_results
