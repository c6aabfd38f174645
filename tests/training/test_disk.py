"""A disk without room: before the start, and in the middle of a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY
from tl_experiments.errors import StorageError
from tl_experiments.records import RunRecord, append_line, remove_stale_temporaries, write_atomically
from tl_experiments.training import disk
from tl_experiments.training.build import build
from tl_experiments.training.run import run

COMMAND = [*TINY, "trainer.max_epochs=3", "trainer.resume_interval_s=0", "freeze_strategy=norm_only", "name=x"]


def largest(folder):
    """Bytes of all files in the folder, at most over the calls."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "overrides",
    [
        ["freeze_strategy=full"],
        ["freeze_strategy=norm_only"],
        ["freeze_strategy=full", "trainer.ema_decay=0.9"],
        ["freeze_strategy=lp_ft", "optimizer=sgd", "optimizer.lr=0.01"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_what_a_run_writes_is_estimated_from_above_and_not_far_off(tiny, tmp_path, monkeypatch, overrides):
    cfg, most = tiny(*overrides, "trainer.resume_interval_s=0", "trainer.max_epochs=8"), 0
    replace = os.replace

    def measuring(source, target):
        nonlocal most
        most = max(most, largest(tmp_path))  # the temporary and what it joins or replaces
        replace(source, target)

    monkeypatch.setattr(os, "replace", measuring)
    estimate = disk.bytes_to_write(cfg, build(cfg))
    run(cfg, tmp_path)
    overhead = 150_000  # of headers, metrics and config, whatever the model
    assert most - overhead <= estimate <= 2 * most + overhead


def test_a_run_that_will_not_fit_is_refused_before_it_writes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda _folder: 1_000_000)
    folder = tmp_path / "run"
    with pytest.raises(StorageError, match=rf"^{folder}: the run needs up to [\d,]+ bytes there, 1,000,000 are free"):
        run(tiny("freeze_strategy=full"), folder)
    assert not folder.exists()


def test_temporaries_of_dead_writers_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getpid(), os.getppid()):
        (tmp_path / f".record.json.{process}-0123abcd.tmp").touch()
    (tmp_path / ".somebody.tmp").touch()
    remove_stale_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        ".somebody.tmp",
        f".record.json.{os.getppid()}-0123abcd.tmp",  # a living writer's
    }


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small tmpfs")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder, leave):
    with (folder / "ballast").open("wb", buffering=0) as stream:
        stream.write(b"x" * max(0, shutil.disk_usage(folder).free - leave))


def test_a_file_that_does_not_fit_is_named_and_the_old_one_stays(small_disk):
    path = write_atomically(small_disk / "results" / "record.json", "old")
    fill(small_disk, 8192)
    expected = rf"^{path}: no space is left, [\d,]+ bytes are free -> make room"
    with pytest.raises(StorageError, match=expected):
        write_atomically(path, "x" * 10**6)
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]
    with pytest.raises(StorageError, match=r"metrics.jsonl: no space is left"):
        append_line(small_disk / "results" / "metrics.jsonl", "x" * 10**6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    run_command([*COMMAND, f"output_dir={out}"])
    (folder,) = (path.parent for path in out.glob("x/*/record.json"))
    return folder


# Runs the command; the disk fills up at the first writing of the file that is named
FILL = """
import os, sys
from pathlib import Path
from tl_experiments import cli, records
from tl_experiments.training import history
disk, name, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]

def fill():
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    if not (disk / "ballast").exists():
        (disk / "ballast").write_bytes(b"x" * free)

replace_open, append = Path.open, history.append_line
def opening(self, *rest, **options):
    if self.name.startswith(f".{name}") and rest == ("xb",):
        fill()
    return replace_open(self, *rest, **options)
def appending(path, line):
    if name == path.name:
        fill()
    append(path, line)
Path.open, history.append_line = opening, appending
cli.main(["train", *arguments])
"""


@pytest.mark.parametrize(
    "name", ["resume-00000006.pt", "metrics.jsonl", "predictions.parquet", "checkpoint.safetensors", "record.json"]
)
def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_costs_no_file(small_disk, tmp_path, whole, name):
    overrides = [*COMMAND, f"trainer.checkpoint={'trained' if name.startswith('checkpoint') else 'none'}"]
    out = small_disk / "outputs"
    script = tmp_path / "fill.py"
    script.write_text(FILL)
    full = subprocess.run(
        [sys.executable, script, small_disk, name, f"output_dir={out}", *overrides],
        capture_output=True,
        text=True,
    )
    assert full.returncode == 1, full.stderr
    last = full.stderr.splitlines()[-1]
    expected = rf"error: \S+/{re.escape(name)}: no space is left, [\d,]+ bytes are free -> .*"
    assert re.fullmatch(expected, last)
    assert "Traceback" not in full.stderr
    (small_disk / "ballast").unlink()
    run_command([f"output_dir={out}", *overrides])
    (folder,) = (path.parent for path in out.glob("x/*/record.json"))
    assert RunRecord.read(folder).metrics == RunRecord.read(whole).metrics
    assert (folder / "predictions.parquet").read_bytes() == (whole / "predictions.parquet").read_bytes()
    assert not list(out.rglob("*.tmp"))
    assert json.loads((out / "x" / "sweep.json").read_text())["jobs"][0]["state"] == "ok"


def run_command(overrides):
    done = subprocess.run(
        [sys.executable, "-m", "tl_experiments", "train", *overrides], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_full_or_foreign_tmpdir_has_no_effect(small_disk, tmp_path):
    fill(small_disk, 0)
    overrides = [*COMMAND, f"output_dir={tmp_path / 'outputs'}"]
    done = subprocess.run(
        [sys.executable, "-m", "tl_experiments", "train", *overrides],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(small_disk), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")},
    )
    assert done.returncode == 0, done.stderr
    assert list(Path(tmp_path, "outputs").rglob("record.json"))
