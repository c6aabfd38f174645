"""The live table: what it says, and that a terminal is clean after it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from tests.conftest import TINY
from tl_experiments.sweeps.display import Board
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.tasks import Task
from tl_experiments.sweeps.worker import Paced
from tl_experiments.training.identity import job_id


@pytest.fixture
def job(tiny):
    def make(*overrides):
        config = tiny(*overrides)
        return Job(job_id(config), overrides, config)

    return make


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_board_says_what_runs_and_how_long_it_will_take(job, clock):
    group = Task(tuple(job(f"seed={seed}") for seed in range(3)), frozenset({2}))
    alone = Task((job("freeze_strategy=full"),))
    board = Board(5, lambda one: " ".join(one.overrides), clock)
    board.started(group)
    board.started(alone)
    assert board.rows() == [("seed=0 and 1 more", "", "0:00"), ("freeze_strategy=full", "", "0:00")]
    board.progressed(alone.jobs[0], 0, 300)
    clock.now += 75
    board.progressed(alone.jobs[0], 100, 300)
    assert board.rows()[1] == ("freeze_strategy=full", "step 100 of 300", "2:30 left")
    assert board.rows()[0][2] == "1:15"
    assert board.caption() == "0 of 5 jobs ended, 3 running, 2 waiting, 1:15"
    board.ended(group.jobs[0], "ok")
    board.ended(alone.jobs[0], "failed")
    assert [row[0] for row in board.rows()] == ["seed=1"]
    assert board.caption() == "2 of 5 jobs ended, 1 failed, 1 running, 2 waiting, 1:15"
    board.split(group)
    assert board.rows() == []


def test_tasks_in_a_queue_are_counted(job, clock):
    tasks = [Task((job(f"seed={seed}"),)) for seed in range(3)]
    board = Board(4, lambda one: " ".join(one.overrides), clock)
    board.submitted(tasks)
    assert board.caption() == "0 of 4 jobs ended, 0 running, 3 in the queue, 1 waiting, 0:00"
    board.started(tasks[0])
    board.progressed(tasks[0].jobs[0], 500, 1000)  # of a task that ran before we looked
    clock.now += 10
    board.progressed(tasks[0].jobs[0], 600, 1000)
    assert board.rows() == [("seed=0", "step 600 of 1000", "0:40 left")]
    board.ended(tasks[1].jobs[0], "interrupted")
    board.split(tasks[2])
    assert board.caption() == "1 of 4 jobs ended, 1 interrupted, 1 running, 0 in the queue, 2 waiting, 0:10"


def test_many_tasks_are_counted(job, clock):
    board = Board(20, lambda one: "x" * 200, clock)
    for seed in range(12):
        board.started(Task((job(f"seed={seed}"),)))
    assert len(board.rows()) == 8
    assert len(board.rows()[0][0]) == 60
    assert board.caption().startswith("and 4 more tasks, 0 of 20 jobs ended, 12 running, 8 waiting")


def test_progress_is_not_sent_more_often_than_anybody_looks():
    sent = []
    paced = Paced(sent.append, interval_s=3600)
    for step in range(1000):
        paced(0, step, 1000)
    assert sent == [("progress", 0, 0, 1000)]


def test_a_terminal_shows_the_table_and_is_clean_afterwards(tmp_path):
    command = [sys.executable, "-m", "tl_experiments", "train", "-m", *TINY, "seed=0,1", "name=terminal"]
    seen = on_a_terminal([*command, "freeze_strategy=full", "executor.jobs_per_device=1"], tmp_path)
    assert re.search(r"0 of 2 jobs ended, 1 running, 1 waiting", seen)
    assert re.search(r"1 of 2 jobs ended, 1 running, 0 waiting", seen)
    left = screen(seen)
    assert not any("jobs ended" in line for line in left)
    assert [line for line in left if re.match(r"\[[12]/2\] ok", line)]
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # the cursor is back
    piped = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "jobs ended" not in piped.stderr
    assert "\x1b" not in piped.stderr


def on_a_terminal(command, folder):
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(command, cwd=folder, stdout=child, stderr=child, env=environment)
    os.close(child)
    seen = b""
    while chunk := _read(parent):
        seen += chunk
    assert process.wait() == 0, seen.decode()
    return seen.decode()


def screen(text):
    """The lines that stand after the codes for moving up, to the left and for erasing a line have been followed."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row = max(0, row - int(part[2:-1] or 1))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith(("\x1b", "\r")):
            lines[row] += part
    return lines


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux says so when the other end of a terminal closes
        return b""
