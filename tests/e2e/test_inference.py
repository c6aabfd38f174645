"""A sweep, and its winner put to use, as a user would: every command a process of its own."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY
from tl_experiments.records import RunRecord


@pytest.fixture
def tl(tmp_path):
    """Run a command in a process of its own."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tl_experiments", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return call


def test_from_a_sweep_to_predictions(tl, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    rng = np.random.default_rng(0)
    for split, n in {"train": 8, "val": 4, "test": 4}.items():
        for name, colour in {"dark": 30, "light": 200}.items():
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(n):
                pixels = colour + rng.integers(0, 30, (24, 30, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / split / name / f"{number}.png")
    (tmp_path / "data" / "test" / "dark" / "broken.txt").write_text("no image")
    dataset = ["dataset=image_folder", "dataset.root=data", "dataset.shots=null"]
    done = tl("train", "-m", *TINY, *dataset, "head=ridge", "seed=0,1", "name=x")
    assert done.returncode == 0, done.stderr

    done = tl("evaluate", "outputs/x", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "outputs" / "x").glob("*/evaluations/data-test-*/evaluation.json")
    run = found.parents[2]
    assert f"model {run.relative_to(tmp_path)}: feature_extraction" in done.stderr
    evaluation, record = json.loads(found.read_text()), RunRecord.read(run)
    assert evaluation["metrics"] == pytest.approx(record.metrics["test"], abs=1e-6)

    shutil.copytree(tmp_path / "data" / "test", tmp_path / "new")
    (tmp_path / "new" / "light" / "broken.png").write_bytes(b"\x89PNG")
    done = tl("predict", str(run), "new", "--output", "by_run.csv", "--device", "cpu")
    assert (done.returncode, done.stdout) == (1, "by_run.csv: 9 rows\n")
    assert done.stderr.splitlines()[-1].startswith("error: images: 1 of 9 could not be read, first new/light/broken")
    rows = list(csv.DictReader((tmp_path / "by_run.csv").open()))
    right = np.mean([row["path"].split("/")[1] == row["prediction"] for row in rows if not row["error"]])
    assert right == record.metrics["test"]["accuracy"]

    done = tl("export", str(run), "--format", "onnx")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{run}/export/model.onnx: equal classes on 8 images, probabilities to ")
    done = tl("predict", f"{run}/export", "new", "--output", "by_onnx.csv")
    assert done.returncode == 1
    again = list(csv.DictReader((tmp_path / "by_onnx.csv").open()))
    assert [(row["path"], row["prediction"]) for row in again] == [(row["path"], row["prediction"]) for row in rows]
