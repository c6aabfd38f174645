"""Locks: one holder, and a dead one's lock is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tl_experiments.cache import locks
from tl_experiments.cache.locks import holder, try_hold


def _write(path: Path, age_s: float = 0.0, **entry: object) -> None:
    path.write_text(json.dumps(entry))
    os.utime(path, (time.time() - age_s,) * 2)


def _dead(path: Path) -> None:
    """A lock whose process was killed."""
    program = "import os, sys; from pathlib import Path; from tl_experiments.cache.locks import try_hold\n"
    program += f"held = try_hold(Path({str(path)!r})); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert path.exists()


def test_one_at_a_time(tmp_path):
    path = tmp_path / "new" / "lock"
    with try_hold(path) as held:
        assert held is not None
        assert try_hold(path) is None
        seen = holder(path)
        assert seen is not None
        assert seen.pid == os.getpid()
        assert abs(seen.since - time.time()) < 5
    assert holder(path) is None
    again = try_hold(path)
    assert again is not None
    held.release()  # a second time does not free what is another's now
    assert try_hold(path) is None
    again.release()


def test_the_lock_is_given_back_when_the_block_raises(tmp_path):
    with pytest.raises(KeyError), try_hold(tmp_path / "lock"):
        raise KeyError
    assert not (tmp_path / "lock").exists()


def test_a_dead_process_is_followed_by_exactly_one(tmp_path):
    for attempt in range(3):
        path, go = tmp_path / f"lock{attempt}", tmp_path / f"go{attempt}"
        _dead(path)
        assert holder(path) is None
        program = (
            "import sys, time; from pathlib import Path; from tl_experiments.cache.locks import try_hold\n"
            "print(flush=True)\n"
            f"while not Path({str(go)!r}).exists(): pass\n"
            f"held = try_hold(Path({str(path)!r})); print(held is not None, flush=True); sys.stdin.read()"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen([sys.executable, "-c", program], **pipes) for _ in range(8)]
        for process in processes:
            process.stdout.readline()
        go.touch()
        won = [process.stdout.readline().strip() for process in processes]
        for process in processes:
            process.communicate()
        assert sorted(won) == ["False"] * 7 + ["True"]


def test_another_process_with_the_old_number_is_not_the_holder(tmp_path):
    path = tmp_path / "lock"
    own = json.loads(try_hold(path).path.read_text())
    _write(path, **{**own, "started": own["started"] - 1})
    held = try_hold(path)
    assert held is not None
    held.release()


@pytest.mark.parametrize("ahead_s", [-3600, 3600])
def test_only_the_file_servers_clock_counts(ahead_s, tmp_path, monkeypatch):
    entry = {"host": "elsewhere", "pid": 1, "started": 5, "since": 0.0}
    ours = time.time
    monkeypatch.setattr(time, "time", lambda: ours() + ahead_s)
    monkeypatch.setattr(time, "time_ns", lambda: int((ours() + ahead_s) * 1e9))
    fresh, old = tmp_path / "fresh", tmp_path / "old"
    fresh.write_text(json.dumps(entry))
    old.write_text(json.dumps(entry))
    os.utime(old, (ours() - 90,) * 2)
    assert try_hold(fresh) is None
    assert holder(fresh) is not None
    assert holder(old) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "old"]


@pytest.mark.parametrize(
    "entry", [{"host": "elsewhere", "pid": 1, "started": 5, "since": 0.0}, {}], ids=["other host", "unreadable"]
)
def test_a_holder_that_cannot_be_looked_at_is_believed_for_a_minute(entry, tmp_path):
    path = tmp_path / "lock"
    _write(path, age_s=30, **entry)
    assert try_hold(path) is None
    _write(path, age_s=90, **entry)
    assert holder(path) is None
    held = try_hold(path)
    assert held is not None
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]
    held.release()


def test_a_living_holder_touches_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.02)
    with try_hold(tmp_path / "lock") as held:
        os.utime(held.path, (0, 0))
        end = time.monotonic() + 5
        while held.path.stat().st_mtime < 1:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_lock_that_was_taken_away_stays_with_its_new_holder(tmp_path):
    path = tmp_path / "lock"
    with try_hold(path):
        path.unlink()
        _write(path, host="elsewhere", pid=1, started=5, since=0.0)
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_who_was_taken_for_dead_is_told_and_leaves_the_file_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.02)
    path, told = tmp_path / "lock", threading.Event()
    with try_hold(path, told.set) as held:
        assert not held.is_lost()
        assert not told.wait(0.2)
        _write(tmp_path / "new", age_s=30, host="elsewhere", pid=1, started=5, since=0.0)
        os.replace(tmp_path / "new", path)
        before = path.stat().st_mtime_ns
        assert told.wait(10)
        assert held.is_lost()
        time.sleep(0.1)
        assert path.stat().st_mtime_ns == before


def test_a_lock_that_another_process_puts_back_is_not_lost(tmp_path):
    """It had taken it for the stale one of before."""
    path = tmp_path / "lock"
    with try_hold(path) as held:
        path.rename(tmp_path / "aside")
        threading.Timer(0.1, (tmp_path / "aside").rename, [path]).start()
        assert not held.is_lost()


def test_a_forked_child_does_not_give_it_back(tmp_path):
    held = try_hold(tmp_path / "lock")
    child = os.fork()
    if not child:
        held.release()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert held.path.exists()
    held.release()
