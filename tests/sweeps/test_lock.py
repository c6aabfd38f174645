"""Two commands never run in one sweep's folder at once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import TINY
from tl_experiments import interrupt
from tl_experiments.cache.locks import try_hold
from tl_experiments.errors import UserError
from tl_experiments.sweeps import lock
from tl_experiments.sweeps.ledger import Ledger
from tl_experiments.sweeps.lock import LOCK_FILE, running_here

SLOW = ["freeze_strategy=full", "trainer.max_epochs=2000", "dataset.shots=5", "name=same"]


@pytest.mark.parametrize("sweep", [["-m", "seed=0,1", "executor.jobs_per_device=1"], []], ids=["sweep", "single"])
def test_the_second_command_says_who_runs_and_a_dead_one_keeps_nobody_out(tmp_path, sweep):
    command = [sys.executable, "-m", "tl_experiments", "train", *TINY, *SLOW, *sweep, f"output_dir={tmp_path}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, **quiet)
    file = tmp_path / "same" / LOCK_FILE
    try:
        _wait_for(lambda: file.exists() and "running" in states(tmp_path))
        before = (tmp_path / "same" / "sweep.json").read_bytes()
        second = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert second.returncode == 2
        said = rf"error: .*same: is being run by process {first.pid} on \S+ since \d{{4}}-.* -> wait for it, or .*"
        assert re.fullmatch(said, second.stderr.splitlines()[-1])
        assert file.exists()
        assert first.poll() is None
        assert (tmp_path / "same" / "sweep.json").read_bytes() == before
    finally:
        first.kill()
        first.wait()
    assert file.exists()  # nobody was left to remove it
    (tmp_path / "same" / "sweep.json").unlink()  # what runs there from now on is the third's
    third = subprocess.Popen([*command], **quiet)
    try:
        _wait_for(lambda: _is_held_by(third.pid, file) and "running" in states(tmp_path))
    finally:
        third.send_signal(signal.SIGTERM)
        assert third.wait(60) == 143
    assert not file.exists()


def test_nothing_is_left_of_a_command_that_could_not_begin(tmp_path):
    with pytest.raises(UserError, match="no data"), running_here(tmp_path / "new"):
        raise UserError("root", "no data", "give some")
    assert list(tmp_path.iterdir()) == []
    with running_here(tmp_path / "kept"):
        (tmp_path / "kept" / "result").touch()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["result"]


def test_a_signal_while_it_is_taken_leaves_no_lock(tmp_path, monkeypatch):
    def interrupted(path):
        held = try_hold(path)
        os.kill(os.getpid(), signal.SIGTERM)
        return held

    monkeypatch.setattr(lock, "try_hold", interrupted)
    with interrupt.installed(at_once=True), pytest.raises(interrupt.Interrupted), running_here(tmp_path / "new"):
        raise AssertionError("it must not begin")
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_is_told_too(tmp_path):
    with running_here(tmp_path), pytest.raises(UserError, match=f"by process {os.getpid()} on"), running_here(tmp_path):
        pass


def test_a_command_that_was_taken_for_dead_writes_no_more(tmp_path):
    """It stood still for over a minute, and one of another machine began."""
    with running_here(tmp_path):
        ledger = Ledger.open(tmp_path)
        ledger.write()
        other = {"host": "elsewhere boot", "pid": 1, "started": 5, "since": 0.0}
        (tmp_path / LOCK_FILE).write_text(json.dumps(other))
        (tmp_path / "sweep.json").write_text("the other's")
        with pytest.raises(UserError, match="another one took over: it is run by process 1 on elsewhere since"):
            ledger.write()
        assert (tmp_path / "sweep.json").read_text() == "the other's"
    assert json.loads((tmp_path / LOCK_FILE).read_text()) == other


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(UserError, match=r"cannot be written \(Permission denied\) -> give"),
        running_here(tmp_path / "x"),
    ):
        pass


def _is_held_by(pid, file):
    try:
        return f'"pid": {pid}' in file.read_text()
    except FileNotFoundError:  # the stale one is put aside before the new one is made
        return False


def states(folder):
    return {entry.state for entry in Ledger.open(folder / "same").jobs.values()}


def _wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
