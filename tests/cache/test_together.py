"""Several processes at one table: each row is made once, whoever is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from tests.cache.warm import rows_of
from tl_experiments.cache.store import Store

ROWS, ROW_BYTES = 1500, 2048


def _start(store: Path, folder: Path, processes: int, seconds: float) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.cache.warm", str(store), str(folder), str(ROWS), str(ROW_BYTES)]
    started = [subprocess.Popen([*command, str(seconds)]) for _ in range(processes)]
    _wait(lambda: len(list(folder.glob("ready-*"))) == processes)
    (folder / "go").touch()
    return started


def _wait(reached) -> None:
    end = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.002)


def _made(folder: Path) -> Counter[int]:
    return Counter(int(line) for path in folder.glob("made-*") for line in path.read_text().split())


def test_eight_processes_make_each_row_once_without_flock(tmp_path):
    processes = _start(tmp_path / "cache", tmp_path, 8, 0.02)
    assert [process.wait(60) for process in processes] == [0] * 8
    assert _made(tmp_path) == Counter(range(ROWS))
    assert sum(path.stat().st_size > 0 for path in tmp_path.glob("made-*")) > 1  # they shared the work
    left = {path.name for path in (tmp_path / "cache" / "rows").iterdir() if not path.name.endswith(".rows")}
    assert left == {"about.json", "uses"}
    assert list((tmp_path / "cache" / "rows" / "uses").iterdir()) == []


def test_others_take_over_from_a_killed_process(tmp_path):
    """It is killed while it makes rows, and not waited for until the end: a zombie must not hold its lock."""
    processes = _start(tmp_path / "cache", tmp_path, 4, 0.2)
    victim = processes[0]
    _wait((tmp_path / f"making-{victim.pid}").exists)
    victim.send_signal(signal.SIGKILL)
    assert [process.wait(60) for process in processes[1:]] == [0, 0, 0]
    assert victim.wait() == -signal.SIGKILL
    table = Store(tmp_path / "cache", 10**9).open("rows", ROW_BYTES, ROWS, {"kind": "test"})
    assert np.array_equal(table.read(np.arange(ROWS)), rows_of(np.arange(ROWS), ROW_BYTES))
    assert list(table.folder.glob("*.tmp")) == []
    made = _made(tmp_path)
    assert set(made) == set(range(ROWS))
    assert sum(made.values()) - ROWS <= 128  # at most the piece in progress is made twice


def test_memory_does_not_grow_with_the_table(tmp_path):
    """Anonymous memory of a process that fills, reads in batches, and opens again."""
    program = """
import re, sys
import numpy as np
from pathlib import Path
from tl_experiments.cache.store import Store

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

store, peaks = Store(Path(sys.argv[1]), 10**10), []
for count in (500, 4000):
    table = store.open(f"t{count}", 40_000, count, {"kind": "test"})
    table.fill(np.arange(count), lambda items: np.full((len(items), 40_000), 7, np.uint8))
    for start in range(0, count, 50):
        assert (table.read(np.arange(start, start + 50))[:, ::1000] == 7).all()
    peaks.append(anonymous())
    table.close()
print(*peaks)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    small, large = map(float, done.stdout.split())
    assert large - small < 10  # MB; the tables are 20 and 160 MB
