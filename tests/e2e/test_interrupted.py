"""Signals and kills from outside, to the command as a user runs it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY
from tl_experiments.records import RunRecord

ROOT = Path(__file__).parents[2]
OVERRIDES = [*TINY, "dataset.shots=10", "trainer.max_epochs=24", "name=x"]
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def start(out, strategy, **environment):
    command = [sys.executable, "-m", "tl_experiments", "train", f"output_dir={out}", f"freeze_strategy={strategy}"]
    return subprocess.Popen(
        [*command, *OVERRIDES], stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def wait_for_epochs(process, out, n):
    """Until so many validations are entered; the epoch after them is in progress then."""
    while process.poll() is None:
        curves = [path.read_text() for path in out.glob("x/*/metrics.jsonl")]
        if any(curve.count("\n") >= n for curve in curves):
            return
        time.sleep(0.002)


def result(out):
    (folder,) = (path.parent for path in out.glob("x/*/record.json"))
    files = [(folder / name).read_bytes() for name in ("predictions.parquet", "checkpoint.safetensors")]
    curve = [json.loads(line) | {"seconds": 0} for line in (folder / "metrics.jsonl").open()]
    left = [path.name for pattern in ("*.tmp", "resume-*") for path in folder.glob(pattern)]
    return RunRecord.read(folder).metrics, files, curve, left


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results of uninterrupted runs."""
    made = {}

    def make(strategy):
        if strategy not in made:
            out = tmp_path_factory.mktemp(strategy)
            process = start(out, strategy)
            assert process.wait() == 0, process.stderr.read()
            made[strategy] = result(out)
        return made[strategy]

    return make


@pytest.mark.parametrize(
    ("strategy", "signum", "environment"),
    [
        ("full", signal.SIGINT, {}),
        ("lp_ft", signal.SIGTERM, {}),
        ("full", signal.SIGUSR1, SLURM),  # where Lightning would requeue the job by itself
        ("lp_ft", signal.SIGUSR2, {}),
    ],
    ids=["int", "term", "usr1 under slurm", "usr2"],
)
def test_a_signal_leads_to_a_resume_point(tmp_path, whole, strategy, signum, environment):
    expected, draw = whole(strategy), random.Random(int(signum))
    process = start(tmp_path, strategy, **environment)
    wait_for_epochs(process, tmp_path, draw.randint(1, 16))
    time.sleep(draw.uniform(0, 0.1))
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, errors
    last = errors.splitlines()[-1]
    assert last.startswith(f"interrupted: {signum.name} after step ")
    assert last.endswith(": the same command again goes on from there")
    (entry,) = json.loads((tmp_path / "x" / "sweep.json").read_text())["jobs"]
    assert entry["state"] == "interrupted"
    step = int(last.partition("after step ")[2].split()[0])
    again = start(tmp_path, strategy)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert f"resuming  after step {step} of " in errors
    assert result(tmp_path) == expected


def test_a_sweep_killed_at_random_ends_the_same():
    """Five of the kills that ``scripts/kill_sweep.py`` deals out; see benchmarks/results/kills.json for fifty."""
    script = [sys.executable, str(ROOT / "scripts" / "kill_sweep.py"), "--kills", "5", "--a-sweep", "5"]
    done = subprocess.run([*script, *TINY, "trainer.max_epochs=12"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["kills"] == said["kills_in_sweeps_that_ended_equal"] == 5
    assert said["leftovers"] == 0
    assert said["most_epochs_repeated"] <= 1
