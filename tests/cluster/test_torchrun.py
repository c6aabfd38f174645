"""``tl train`` as one of several processes that torchrun has started."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import TINY
from tl_experiments.records import RunRecord

pytestmark = pytest.mark.cluster

DDP = ["trainer=ddp", "trainer.devices=2", "freeze_strategy=full"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tl_experiments"]


def test_one_process_writes_what_all_have_trained(tmp_path, tl):
    job = ["train", *TINY, *DDP, f"output_dir={tmp_path}", "name=x"]
    done = subprocess.run([*TORCHRUN, *job], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'x'}\n"
    assert done.stderr.count("test      accuracy") == 1
    (path,) = tmp_path.glob("x/*/record.json")
    assert RunRecord.read(path.parent).environment["devices"] == 2
    assert {file.name for file in path.parent.iterdir()} == {
        *("record.json", "start.json", "metrics.jsonl", "predictions.parquet"),
        *("checkpoint.json", "checkpoint.safetensors"),
    }
    before = path.stat()
    again = subprocess.run([*TORCHRUN, *job], capture_output=True, text=True, timeout=120)
    assert (again.returncode, again.stdout) == (0, f"done before: {tmp_path / 'x'}\n"), again.stderr
    assert path.stat() == before


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (
            ["trainer.devices=4"],
            "trainer.devices: 4 times trainer.num_nodes=1 is 4 processes, but torchrun started 2 -> start a process a",
        ),
        (["-m", "seed=0,1"], "tl train -m: torchrun started 2 processes, and a sweep is one that starts others -> a"),
        (["executor=slurm"], "executor: slurm, which starts processes itself, under torchrun -> start it without"),
    ],
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_cannot_be_is_said_once(tl, monkeypatch, overrides, error, rank):
    for key, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(key, value)
    code, _, errors = tl("train", *TINY, *DDP, *overrides)
    assert code == 2
    assert errors.startswith(f"error: {error}") if rank == "0" else not errors


def test_one_device_has_one_process(tl, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, errors = tl("train", *TINY)
    assert code == 2
    assert errors.startswith("error: trainer: default, which is one process, but torchrun started 2 ->")
