"""Sweeps in real processes: a job's death costs only itself, and what is done is not done again."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.sweeps import faulty
from tl_experiments import interrupt
from tl_experiments.errors import UserError
from tl_experiments.records import RunRecord
from tl_experiments.sweeps.jobs import Job, sweep_folder
from tl_experiments.sweeps.ledger import Ledger
from tl_experiments.sweeps.local import slots
from tl_experiments.sweeps.sweep import run_sweep
from tl_experiments.training.identity import job_id

SLOW = ["freeze_strategy=full", "trainer.max_epochs=2000", "dataset.shots=5"]  # each job a task of its own


def job(cfg, *overrides):
    return Job(job_id(cfg), overrides, cfg)


def faulty_job(kind, cfg):
    broken = kind(**{field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)})
    return Job(f"{kind.__name__.lower()}-{job_id(cfg)}", (kind.__name__,), broken)


def metrics(folder, jobs):
    return {one.id: RunRecord.read(folder / one.id).metrics for one in jobs}


def test_the_others_finish_with_the_results_of_a_clean_sweep(tiny, tmp_path):
    good = [job(tiny(f"seed={seed}", "executor.threads_per_job=1")) for seed in (1, 2)]
    kinds = [
        (faulty.Raises, "failed", "RuntimeError: a bug"),
        (faulty.Exits, "failed", "the job called exit(3) before it was done"),
        (faulty.ExitsAsIfAllWereWell, "failed", "the job called exit(0) before it was done"),
        (faulty.Killed, "failed", "killed by SIGKILL: out of memory? lower trainer.batch_size"),
        (faulty.Segfaults, "failed", "killed by SIGSEGV"),
        (faulty.RunsOutOfMemory, "oom", "lower trainer.batch_size"),
    ]
    bad = [faulty_job(kind, tiny("executor.threads_per_job=1")) for kind, _, _ in kinds]

    clean = run_sweep(good, tmp_path / "clean", "clean")
    assert (clean.trained, clean.skipped, clean.ok, clean.bad) == (2, 0, 2, ())
    mixed = run_sweep([good[0], *bad, good[1]], tmp_path / "mixed", "mixed")

    assert metrics(tmp_path / "mixed", good) == metrics(tmp_path / "clean", good)
    assert (mixed.ok, len(mixed.bad)) == (2, len(kinds))
    ledger = json.loads((tmp_path / "mixed" / "sweep.json").read_text())
    entries = {entry["id"]: entry for entry in ledger["jobs"]}
    assert len(entries) == len(kinds) + 2  # every job is accounted for
    assert {entries[one.id]["state"] for one in good} == {"ok"}
    for one, (_, state, cause) in zip(bad, kinds, strict=True):
        assert entries[one.id]["state"] == state
        assert cause in entries[one.id]["cause"]
        assert "\n" not in entries[one.id]["cause"]
        assert (tmp_path / "mixed" / entries[one.id]["log"]).is_file()
    assert "Traceback" in (tmp_path / "mixed" / entries[bad[0].id]["log"]).read_text()
    assert not list((tmp_path / "mixed").rglob("*.tmp"))


def test_a_group_that_dies_is_tried_again_in_halves(tiny, tmp_path, caplog, monkeypatch):
    """The four are one task; the second kills its process once, and alone it is well."""
    options = "executor.threads_per_job=1"
    good = [job(tiny(f"optimizer.lr_factor={factor}", options)) for factor in (1, 2, 3)]
    bad = faulty_job(faulty.KilledInCompany, tiny("optimizer.lr_factor=4", options))
    caplog.set_level("INFO", "tl_experiments")
    monkeypatch.setattr(logging.getLogger("tl_experiments"), "propagate", True)
    clean = run_sweep(good, tmp_path / "clean", "clean")
    assert clean.ok == 3
    outcome = run_sweep([good[0], bad, *good[1:]], tmp_path / "mixed", "mixed")
    assert (outcome.ok, outcome.bad) == (4, ())
    assert metrics(tmp_path / "mixed", good) == metrics(tmp_path / "clean", good)
    ledger = Ledger.open(tmp_path / "mixed")
    first, killed, second, third = (one.id for one in (good[0], bad, *good[1:]))
    assert ledger.plan["groups"] == [[first, killed], [second, third]]
    assert re.search(
        r"4 jobs .* died \(killed by SIGKILL.*\), see logs/\w+.log: 4 of them again, in 2 tasks", caplog.text
    )
    # a resume forms the groups as they were left, also where some of their jobs are done
    (tmp_path / "mixed" / second / "record.json").unlink()
    stamp = (tmp_path / "mixed" / third / "record.json").stat().st_mtime_ns
    assert run_sweep([good[0], bad, *good[1:]], tmp_path / "mixed", "mixed").trained == 1
    assert (tmp_path / "mixed" / third / "record.json").stat().st_mtime_ns == stamp
    assert sorted(Ledger.open(tmp_path / "mixed").plan["groups"]) == sorted([[first, killed], [second, third]])
    assert metrics(tmp_path / "mixed", good) == metrics(tmp_path / "clean", good)


def test_what_is_done_is_skipped_and_what_failed_waits_for_a_word(tiny, tmp_path):
    good, bad = job(tiny()), faulty_job(faulty.Raises, tiny())
    first = run_sweep([good, bad], tmp_path, "command")
    assert (first.trained, first.ok) == (2, 1)
    stamp = (tmp_path / good.id / "record.json").stat().st_mtime_ns
    again = run_sweep([good, bad], tmp_path, "command")
    assert (again.trained, again.skipped, again.ok) == (0, 2, 1)
    assert [entry.id for entry in again.bad] == [bad.id]  # still named
    retried = run_sweep([good, faulty_job(faulty.Raises, tiny("retry_failed=true"))], tmp_path, "command")
    assert (retried.trained, retried.ok) == (1, 1)
    assert (tmp_path / good.id / "record.json").stat().st_mtime_ns == stamp


def test_a_second_command_adds_to_a_named_sweep(tiny, tmp_path):
    one, two = job(tiny("seed=1")), job(tiny("seed=2"))
    run_sweep([one], tmp_path, "first command")
    run_sweep([two], tmp_path, "second command")
    ledger = Ledger.open(tmp_path)
    assert ledger.commands == ["first command", "second command"]
    assert [entry.state for entry in ledger.jobs.values()] == ["ok", "ok"]


def test_a_damaged_ledger_is_named(tmp_path):
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep.json: cannot be read .* -> choose another name="):
        Ledger.open(tmp_path)


def test_jobs_end_with_the_command_that_started_them(tmp_path):
    """SIGKILL of the command leaves no process behind, and the same command goes on afterwards."""
    slow = [*SLOW, "name=killed", f"output_dir={tmp_path}"]
    command = [
        sys.executable,
        "-m",
        "tl_experiments",
        "train",
        "-m",
        *TINY,
        *slow,
        "seed=0,1",
        "executor.jobs_per_device=2",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(lambda: len(list(tmp_path.glob("killed/*/metrics.jsonl"))) == 2, 90)
        assert len(_processes_of(tmp_path)) >= 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _wait_for(lambda: not _processes_of(tmp_path), 20)
    states = {entry.state for entry in Ledger.open(tmp_path / "killed").jobs.values()}
    assert states == {"running"}  # nobody was left to say otherwise; a rerun treats it as not done


def _wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def _servers_of(group):
    """Forkservers of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"multiprocessing.forkserver" in path.read_bytes() and os.getpgid(int(path.parent.name)) == group:
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def _processes_of(folder):
    """Processes that hold a file below ``folder`` open, as each job holds its log."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        if any(link.startswith(str(folder)) for link in links):
            found.add(pid)
    return found


@pytest.mark.parametrize(
    ("signum", "sweep", "states"),
    [
        (signal.SIGINT, ["-m", "seed=0,1,2", "executor.jobs_per_device=2"], ["interrupted", "interrupted", "skipped"]),
        (signal.SIGINT, [], ["interrupted"]),
        (signal.SIGTERM, ["-m", "seed=0,1", "executor.jobs_per_device=1"], ["interrupted", "skipped"]),
        (signal.SIGUSR1, ["-m", "seed=0,1", "executor.jobs_per_device=1"], ["interrupted", "skipped"]),
        (signal.SIGUSR2, ["-m", "seed=0,1", "executor.jobs_per_device=1"], ["interrupted", "skipped"]),
    ],
)
def test_a_signal_ends_the_jobs_and_says_so(tmp_path, signum, sweep, states):
    slow = [*SLOW, "name=stopped", f"output_dir={tmp_path}"]
    command = [sys.executable, "-m", "tl_experiments", "train", *TINY, *slow, *sweep]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    running = states.count("interrupted")
    _wait_for(lambda: len(list(tmp_path.glob("stopped/*/metrics.jsonl"))) == running, 90)
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # as a terminal does: every process of the group gets it
    else:
        process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert errors.splitlines()[-1].startswith(f"interrupted: {signum.name}")
    assert "the same command again goes on" in errors.splitlines()[-1]
    _wait_for(lambda: not _processes_of(tmp_path), 20)
    entries = Ledger.open(tmp_path / "stopped").jobs.values()
    assert sorted(entry.state for entry in entries) == states
    assert all(entry.cause and "run it again" in entry.cause for entry in entries)


def test_ctrl_c_while_the_processes_still_import(tmp_path):
    """Their server is of the terminal's group too, and takes seconds to import torch."""
    slow = [*SLOW, "name=stopped", f"output_dir={tmp_path}"]
    command = [sys.executable, "-m", "tl_experiments", "train", *TINY, *slow, "-m", "seed=0,1"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _wait_for(lambda: _servers_of(process.pid), 90)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("interrupted: SIGINT")
    _wait_for(lambda: not _processes_of(tmp_path), 20)


def test_every_job_is_accounted_for(tiny, tmp_path):
    """One of each state: N configs, N rows, each with its cause, log and seconds."""
    alone = ("feature_cache=off", "executor.threads_per_job=1", "executor.jobs_per_device=1")
    jobs = {
        "ok": job(tiny(*alone)),
        "failed": faulty_job(faulty.Raises, tiny(*alone)),
        "diverged": job(tiny(*alone, "freeze_strategy=full", "optimizer=sgd", "optimizer.lr=1e30")),
        "oom": faulty_job(faulty.RunsOutOfMemory, tiny(*alone)),
        "interrupted": faulty_job(faulty.EndsTheCommand, tiny(*alone, "freeze_strategy=full", "seed=1")),
        "skipped": job(tiny(*alone, "freeze_strategy=full", "seed=2")),
    }
    with interrupt.installed(at_once=True), pytest.raises(interrupt.Interrupted, match="SIGTERM") as error:
        run_sweep(list(jobs.values()), tmp_path, "one of each")
    assert error.value.exit_code == 143
    entries = Ledger.open(tmp_path).jobs
    assert {state: entries[one.id].state for state, one in jobs.items()} == {state: state for state in jobs}
    assert len(entries) == len(jobs)
    for state, one in jobs.items():
        entry = entries[one.id]
        assert (entry.cause is None) is (state == "ok")
        assert "\n" not in (entry.cause or "")
        if state == "skipped":  # it never began
            assert (entry.log, entry.seconds) == (None, None)
        else:
            assert (tmp_path / entry.log).is_file()
            assert entry.seconds > 0


def test_a_second_signal_ends_at_once(tiny, tmp_path):
    stubborn = faulty_job(faulty.WillNotStop, tiny())
    started = time.monotonic()
    with interrupt.installed(at_once=True), pytest.raises(interrupt.Interrupted, match="SIGINT"):
        run_sweep([stubborn], tmp_path, "stubborn")
    assert time.monotonic() - started < 30  # which it would have for a resume point
    assert not _processes_of(tmp_path)
    assert Ledger.open(tmp_path).jobs[stubborn.id].state == "interrupted"


def test_what_runs_out_of_memory_while_it_ends_is_tried_again(tiny, tmp_path):
    """Smaller tasks might do better: no job of the group is to blame yet."""
    jobs = [
        faulty_job(faulty.RunsOutOfMemoryWhileItEnds, tiny(f"optimizer.lr_factor={factor}")) for factor in (1, 2, 3)
    ]
    with interrupt.installed(at_once=True), pytest.raises(interrupt.Interrupted, match="SIGTERM"):
        run_sweep(jobs, tmp_path, "three in one task")
    entries = Ledger.open(tmp_path).jobs.values()
    assert [entry.state for entry in entries] == ["interrupted"] * 3
    assert all("run it again" in entry.cause for entry in entries)


def test_slots_share_the_cores(tiny, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr("tl_experiments.sweeps.local.visible_gpus", lambda: ["0", "1"])
    cpu, auto = tiny().trainer, tiny("trainer.accelerator=auto").trainer
    default, two, three = (
        tiny(*o).executor for o in ([], ["executor.jobs_per_device=2"], ["executor.jobs_per_device=3"])
    )
    assert slots(default, cpu, 100) == slots(default, cpu, 100, threads=4)
    assert (slots(default, cpu, 100).devices, slots(default, cpu, 100).threads) == ((None,) * 4, 4)
    assert (slots(two, cpu, 100).devices, slots(two, cpu, 100).threads) == ((None,) * 2, 8)
    assert (slots(default, cpu, 1).devices, slots(default, cpu, 1).threads) == ((None,), 16)
    assert slots(default, cpu, 100, threads=8).devices == (None,) * 2  # a resumed sweep keeps its threads
    assert slots(default, auto, 100).devices == ("0", "1")  # one job a GPU
    assert slots(three, auto, 100).devices == ("0", "1", "0", "1", "0", "1")  # of each GPU
    assert slots(three, cpu, 2).devices == (None,) * 2


@pytest.mark.parametrize(
    ("overrides", "name", "pattern"),
    [
        (["seed=1,2"], None, r"seed_1_2-[0-9a-f]{8}"),
        ([], None, r"defaults-[0-9a-f]{8}"),
        (["dataset.root=/a/../b c", "optimizer.lr_factor=3"], None, r"root_a_.._b_c-lr_factor_3-[0-9a-f]{8}"),
        (["x=" + "y" * 300], None, r"x_y{58}-[0-9a-f]{8}"),
        (["seed=1"], "mine", r"mine"),
    ],
)
def test_folders_are_named_after_the_overrides(tiny, overrides, name, pattern):
    cfg = dataclasses.replace(tiny(), name=name)
    folder = sweep_folder([job(cfg)], overrides)
    assert re.fullmatch(pattern, folder.name)
    assert str(folder.parent) == cfg.output_dir
    assert sweep_folder([job(cfg)], [*overrides, "executor.jobs_per_device=3", "retry_failed=true"]) == folder


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 101, "a\nb"])
def test_a_sweeps_name_stays_inside_its_root(tiny, name):
    with pytest.raises(UserError, match=r"name: got .* expected letters, digits"):
        dataclasses.replace(tiny(), name=name)


def test_the_job_id_covers_what_changes_the_result_and_nothing_else(tiny, tmp_path):
    base = job_id(tiny())
    same = [
        "executor.jobs_per_device=3",
        "tracker=[csv,wandb]",
        "name=x",
        "retry_failed=true",
        "trainer.num_workers=2",
        "debug=true",
    ]
    assert {job_id(tiny(override)) for override in same} == {base}
    other = ["seed=1", "optimizer.lr_factor=2", "trainer.max_epochs=3", "freeze_strategy=full", "dataset.split_seed=1"]
    assert len({base, *(job_id(tiny(override)) for override in other)}) == len(other) + 1
    rule = tiny().base_lr()
    assert job_id(tiny(f"optimizer.lr={rule}")) == base  # the same rate, said otherwise
    assert job_id(tiny("freeze_strategy.base_lr.sgd=7")) == base
    assert job_id(tiny("dataset.shots=null", "dataset.subset_seed=5")) == job_id(tiny("dataset.shots=null"))
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"one")
    first = job_id(tiny(f"backbone.weights={weights}"))
    weights.write_bytes(b"other")
    assert job_id(tiny(f"backbone.weights={weights}")) != first  # by content, not by name


def test_what_a_kill_left_beside_a_record_is_removed(tiny, tmp_path):
    """Between the record and the removal of what a resume needs."""
    one = job(tiny())
    run_sweep([one], tmp_path, "tl train -m ...")
    for name in ("resume-00000003.pt", "resume-00000006.sha256"):
        (tmp_path / one.id / name).touch()
    assert run_sweep([one], tmp_path, "tl train -m ...").trained == 0
    assert not list(tmp_path.rglob("resume-*"))
