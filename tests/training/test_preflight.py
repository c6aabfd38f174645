"""What is checked before any job starts: results of images that are no more pass for nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from tl_experiments.data import checking, digests
from tl_experiments.errors import DataError
from tl_experiments.training import preflight
from tl_experiments.training.preflight import check_unchanged
from tl_experiments.training.run import run


@pytest.fixture
def arrays(tmp_path):
    """12 images of two classes, as arrays: all files have the same size."""
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "arrays" / ("ants", "bees")[number % 2] / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    return tmp_path / "arrays"


@pytest.fixture
def options(arrays):
    return ["dataset=image_folder", f"dataset.root={arrays}", "dataset.shots=null", "trainer.max_epochs=1"]


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were read, for a digest alone or to decode them as well."""
    names = []
    for module, reader in ((digests, "_sha256"), (checking, "_inspect_file")):
        real = getattr(module, reader)
        monkeypatch.setattr(module, reader, lambda path, *rest, real=real: names.append(path.name) or real(path, *rest))
    return names


def settle(monkeypatch):
    """Files that changed a moment ago are read again; these changed an hour ago."""
    now = time.time_ns()
    monkeypatch.setattr(digests.time, "time_ns", lambda: now + 3600 * 10**9)


def test_files_with_other_contents_and_the_old_names_and_sizes_are_told(tiny, options, arrays, tmp_path):
    config = tiny(*options)
    record = run(config, tmp_path / "run")
    check_unchanged([(config, record)])
    before = {path: path.stat().st_size for path in arrays.rglob("*.npy")}
    for path in before:
        np.save(path, 255 - np.load(path))
    assert {path: path.stat().st_size for path in arrays.rglob("*.npy")} == before
    then = record.data["fingerprint"][:12]
    with pytest.raises(DataError, match=rf"changed since job {record.job_id} ran .*{then} then, [0-9a-f]{{12}} now"):
        check_unchanged([(config, record)])
    again = run(config, tmp_path / "again")
    with pytest.raises(DataError, match=f"{then} then, {again.data['fingerprint'][:12]} now"):
        check_unchanged([(config, record)])
    check_unchanged([(config, again)])


def test_finished_runs_of_known_files_read_none_and_list_them_once(tiny, options, arrays, tmp_path, read, monkeypatch):
    settle(monkeypatch)
    splits = [[], ["dataset.split_seed=7"], ["dataset.val_fraction=0.3"], ["seed=3", "dataset.shots=2"]]
    configs = [tiny(*options, *each) for each in splits]
    done = [(config, run(config, tmp_path / str(number))) for number, config in enumerate(configs)]
    assert len({record.data["fingerprint"] for _, record in done}) == 3  # shots are no part of it
    assert len(read) == 12
    opened = []
    real = preflight.open_source
    monkeypatch.setattr(preflight, "open_source", lambda *args: opened.append(args) or real(*args))
    check_unchanged(done * 25)
    assert (len(read), len(opened)) == (12, 1)
    os.utime(next(Path(arrays).rglob("*.npy")), ns=(0, 0))  # touched, with the contents of before
    check_unchanged(done)
    assert len(read) == 13
