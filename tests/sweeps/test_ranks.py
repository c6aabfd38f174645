"""Jobs on several devices: their ranks start, fail and end together, whoever started them."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import TINY
from tests.sweeps import faulty
from tests.sweeps.processes import begin_rank
from tests.sweeps.test_sweep import _processes_of as processes_of
from tests.sweeps.test_sweep import _wait_for as wait_for
from tests.sweeps.test_sweep import faulty_job, job
from tl_experiments.errors import ConfigError
from tl_experiments.records import RunRecord
from tl_experiments.sweeps.journal import journal_path
from tl_experiments.sweeps.launched import launched, srun_variables
from tl_experiments.sweeps.ledger import Ledger
from tl_experiments.sweeps.local import check_devices, server, slots
from tl_experiments.sweeps.ranks import Processes
from tl_experiments.sweeps.sweep import run_sweep
from tl_experiments.sweeps.tasks import Task

DDP = ("trainer=ddp", "trainer.devices=2", "freeze_strategy=full")
COMMAND = [sys.executable, "-m", "tl_experiments", "train", *TINY, *DDP, "name=x"]
SRUN = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08,12],login1", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}  # fmt: skip


def test_a_slot_has_as_many_gpus_as_a_job(tiny, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr("tl_experiments.sweeps.local.visible_gpus", lambda: ["2", "3", "5", "6", "7"])
    one, two = tiny().executor, tiny("executor.jobs_per_device=2").executor
    on = {n: tiny("trainer=ddp", "trainer.accelerator=auto", f"trainer.devices={n}").trainer for n in (1, 2, 5, 6)}
    cpu = tiny(*DDP).trainer

    assert slots(one, on[1], 9).devices == ("2", "3", "5", "6", "7")
    assert slots(one, on[2], 9).devices == ("2,3", "5,6")
    assert slots(one, on[2], 9).threads == 4  # of 16 for 2 x 2 processes
    assert slots(two, on[2], 9).devices == ("2,3", "5,6", "2,3", "5,6")
    assert slots(one, on[5], 9).devices == ("2,3,5,6,7",)
    assert (slots(one, cpu, 9).devices, slots(one, cpu, 9).threads) == ((None,) * 4, 2)
    assert (slots(one, cpu, 1).devices, slots(one, cpu, 1).threads) == ((None,), 8)

    check_devices([on[5], cpu])
    with pytest.raises(ConfigError, match=r"trainer.devices: 6, but this machine shows 5 GPUs -> give fewer"):
        check_devices([on[1], on[6]])
    with pytest.raises(ConfigError, match=r"trainer.num_nodes: 2, .* one machine -> executor=slurm, or .* torchrun"):
        check_devices([tiny(*DDP, "trainer.num_nodes=2").trainer])


def test_ranks_of_srun_get_the_variables_of_torchrun():
    assert srun_variables(SRUN) == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07", "MASTER_PORT": str(15000 + (4711 * 101 + 2) % 15000),
    }  # fmt: skip
    given = srun_variables({**SRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"})
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.7", "29500")
    assert srun_variables({**SRUN, "SLURM_STEP_NUM_NODES": "1"})["MASTER_ADDR"] == "127.0.0.1"
    assert srun_variables({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert srun_variables({**SRUN, "RANK": "0", "WORLD_SIZE": "2"}) is None  # torchrun on each node, by srun
    assert srun_variables({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None  # a batch script
    assert launched({"RANK": "0", "WORLD_SIZE": "1"}) is None


def test_a_rank_that_fails_ends_the_others_with_its_cause(tiny, tmp_path):
    kinds = [
        (faulty.Rank1Raises, "rank 1: RuntimeError: a bug"),
        (faulty.Rank1IsKilled, "rank 1 killed by SIGKILL: out of memory? lower trainer.batch_size or"),
        (faulty.Rank1Exits, "rank 1 called exit(3) before it was done"),
    ]
    options = (*DDP, "executor.jobs_per_device=2", "executor.threads_per_job=1")
    alone = job(tiny("freeze_strategy=full", *options[3:]))
    good = [job(tiny(*options, f"seed={seed}")) for seed in (0, 1)]
    bad = [faulty_job(kind, tiny(*options)) for kind, _ in kinds]

    began = time.monotonic()
    outcome = run_sweep([alone, bad[0], good[0], *bad[1:], good[1]], tmp_path, "six, two at once")
    assert time.monotonic() - began < 90  # nobody waits for trainer.timeout_s

    assert (outcome.ok, len(outcome.bad)) == (3, 3)
    for (_, cause), entry in zip(kinds, outcome.bad, strict=True):
        assert (entry.state, entry.cause[: len(cause)]) == ("failed", cause)
        assert "\n" not in entry.cause
    assert "Traceback" in (tmp_path / bad[0].id / "job.rank1.log").read_text()
    assert not processes_of(tmp_path)
    for one in (alone, *good):
        assert not list((tmp_path / one.id).glob("*rank*"))  # it has said nothing
        assert RunRecord.read(tmp_path / one.id).environment["devices"] == (1 if one is alone else 2)


class _OneIsEnough:
    """Like the module that it wraps, but it starts no second process."""

    def __init__(self):
        self.started = []
        self.Pipe = multiprocessing.Pipe

    def Process(self, **options):  # noqa: N802
        if self.started:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        self.started.append(multiprocessing.get_context("spawn").Process(**options))
        return self.started[0]


def test_ranks_that_have_no_company_are_ended(tiny, tmp_path):
    context = _OneIsEnough()
    with pytest.raises(BlockingIOError):
        Processes(context, Task((job(tiny(*DDP)),)), tmp_path, 1, {})
    assert not context.started[0].is_alive()


def _start(tmp_path):
    return subprocess.Popen(
        [*COMMAND, f"output_dir={tmp_path}", "trainer.max_epochs=400"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def _epochs(tmp_path):
    return sum(path.read_text().count("\n") for path in tmp_path.glob("x/*/metrics.jsonl"))


def test_a_signal_reaches_every_rank_once_and_a_kill_leaves_none(tmp_path):
    process = _start(tmp_path)
    wait_for(lambda: _epochs(tmp_path) > 2, 90)
    assert len(processes_of(tmp_path)) >= 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the ranks get it too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    wait_for(lambda: not processes_of(tmp_path), 20)
    (entry,) = Ledger.open(tmp_path / "x").jobs.values()
    assert entry.state == "interrupted"
    assert f"its log: {tmp_path / 'x' / entry.id / 'job.log'}; tl logs" in errors
    step = int(entry.cause.partition("after step ")[2].split()[0])
    assert max(tmp_path.glob("x/*/resume-*.pt")).stem == f"resume-{step:08d}"

    again = _start(tmp_path)
    log = tmp_path / "x" / entry.id / "job.log"
    wait_for(lambda: f"resuming  after step {step} of " in log.read_text(), 90)
    os.kill(again.pid, signal.SIGKILL)
    wait_for(lambda: not processes_of(tmp_path), 20)
    again.communicate()


@pytest.fixture
def turn(tmp_path):
    """Both ranks of a task as SLURM starts them, on this machine; ends them where a test does not."""
    started = []

    def start(one, *, ranks=2):
        threads, together = 1, []
        for rank in range(ranks):
            variables = {
                **SRUN, "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NUM_TASKS": str(ranks),
                "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
            }  # fmt: skip
            arguments = (Task((one,)), tmp_path, threads, variables)
            together.append(server(alone=True).Process(target=begin_rank, args=arguments))
            together[-1].start()
        started.extend(together)
        return together

    yield start
    for process in started:
        process.kill()
        process.join()


def _codes(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def _journal(folder, one):
    return [json.loads(line) for line in journal_path(folder, one.id).read_text().splitlines()]


def test_ranks_of_a_cluster_take_turns_together(tiny, tmp_path, turn):
    one = job(tiny(*DDP, "trainer.max_epochs=40"))
    first = turn(one)
    wait_for(lambda: sum(path.read_text().count("\n") for path in tmp_path.glob("*/metrics.jsonl")) > 2, 60)
    for process in first:  # as srun does
        os.kill(process.pid, signal.SIGUSR2)
    assert _codes(first) == [signal.SIGUSR2] * 2
    *_, last = _journal(tmp_path, one)
    assert (last["event"], last["state"]) == ("left", "interrupted")
    step = int(last["cause"].partition("after step ")[2].split()[0])
    assert max(tmp_path.glob("*/resume-*.pt")).stem == f"resume-{step:08d}"

    assert _codes(turn(one)) == [0, 0]
    assert f"resuming  after step {step} of " in (tmp_path / one.id / "job.log").read_text()
    assert [line["event"] for line in _journal(tmp_path, one)[-2:]] == ["ended", "over"]
    record = (tmp_path / one.id / "record.json").stat()

    assert _codes(turn(one)) == [0, 0]  # nothing is left to do
    assert (tmp_path / one.id / "record.json").stat() == record
    assert [line["event"] for line in _journal(tmp_path, one)].count("began") == 2  # it had said that it is over

    bad = faulty_job(faulty.Rank1Raises, tiny(*DDP))
    assert _codes(turn(bad)) == [0, 0]
    ended = [line for line in _journal(tmp_path, bad) if line["event"] in ("ended", "left")]
    assert [(line["state"], line["cause"]) for line in ended] == [("failed", "rank 1: RuntimeError: a bug")]
    assert "Traceback" in (tmp_path / bad.id / "job.rank1.log").read_text()


def test_a_single_process_of_a_cluster_starts_the_ranks_itself(tiny, tmp_path, turn):
    one = job(tiny(*DDP))
    assert _codes(turn(one, ranks=1)) == [0]
    assert RunRecord.read(tmp_path / one.id).environment["devices"] == 2
    assert [line["event"] for line in _journal(tmp_path, one) if line["event"] != "progress"] == [
        "began",
        "ended",
        "over",
    ]
