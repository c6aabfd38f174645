"""What a sweep pays once: images decoded, images encoded, nothing at all the second time. Counted, not timed."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from tests.conftest import TINY
from tests.sweeps.test_sweep import job
from tl_experiments.records import RunRecord
from tl_experiments.sweeps.costs import CostBook
from tl_experiments.sweeps.ledger import Ledger
from tl_experiments.sweeps.planner import make_plan
from tl_experiments.sweeps.sweep import run_sweep
from tl_experiments.sweeps.tasks import make_tasks
from tl_experiments.training.preflight import Datasets
from tl_experiments.training.run import run
from tl_experiments.training.storage import store_of

ONE_THREAD = "executor.threads_per_job=1"


def records(folder, jobs):
    return [RunRecord.read(folder / one.id) for one in jobs]


def total(found, key):
    return sum(record.work[key] for record in found)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """24 JPEGs a split of two classes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(12):
                pixels = rng.integers(100 * label, 100 * label + 120, (48, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")
    return root


@pytest.fixture
def of_photos(tiny, photos):
    def make(*overrides):
        return tiny("dataset=image_folder", f"dataset.root={photos}", "dataset.shots=null", ONE_THREAD, *overrides)

    return make


def command(*overrides):
    return [sys.executable, "-m", "tl_experiments", "train", "-m", *TINY, *overrides]


def test_64_probes_encode_each_image_once_and_the_second_time_nothing(photos, tmp_path):
    rates = ",".join(f"{0.0001 * 1.2**number:.6f}" for number in range(32))
    overrides = [
        "dataset=image_folder",
        f"dataset.root={photos}",
        "dataset.shots=null",
        "name=probes",
        f"output_dir={tmp_path}",
        f"optimizer.lr={rates}",
        "trainer.batch_size=8,12",
        ONE_THREAD,
    ]
    first = subprocess.run(command(*overrides), capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
    found = [RunRecord.read(path.parent) for path in sorted((tmp_path / "probes").glob("*/record.json"))]
    assert len(found) == 64
    assert {record.work["together"] for record in found} == {64}
    assert total(found, "images_encoded") == total(found, "images_decoded") == 72
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "probes").glob("*/*")}

    opened = _opened_by(command(*overrides), tmp_path)
    assert {path for path in opened if path.endswith(".jpg")} == set()
    assert {name for name in opened if "/torch/" in name or "/sklearn/" in name or "/scipy/" in name} == set()
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "probes").glob("*/*")}


def _opened_by(command, tmp_path):
    """Every file that the command opens, by Python's audit hook; the modules that it imports are among them."""
    log = tmp_path / "opened.txt"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"out = os.open({str(log)!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)\n"
        "sys.addaudithook(lambda event, args: event == 'open' and isinstance(args[0], str)\n"
        "                 and os.write(out, (args[0] + '\\n').encode()) and None)\n"
    )
    path = os.pathsep.join([str(tmp_path / "hook"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-2000:]
    opened = log.read_text().splitlines()
    assert any(name.endswith(("record.json", "sweep.json")) for name in opened)
    return opened


def test_with_augmentation_an_image_is_encoded_once_a_view(of_photos, tmp_path):
    views = ["augmentation=flip_crop", "feature_cache.views=3", "trainer.max_epochs=4"]
    jobs = [job(of_photos(*views, f"optimizer.lr={lr}")) for lr in (0.1, 0.01, 0.001)]
    assert run_sweep(jobs, tmp_path, "views").ok == 3
    # train three times, val and test as they are
    assert total(records(tmp_path, jobs), "images_encoded") == 3 * 24 + 24 + 24


PARTIAL = ["freeze_strategy=last_n_blocks", "freeze_strategy.n=1"]


@pytest.mark.parametrize(
    ("kinds", "encoded"),
    [
        ([["feature_cache.views=3", "trainer.max_epochs=2"]], [2 * 24 + 48]),  # the third view is never seen
        ([["feature_cache.views=2", "trainer.max_epochs=3"]], [2 * 24 + 48]),
        ([[*PARTIAL, "feature_cache.views=2", "trainer.max_epochs=3"]], [2 * 24 + 48]),
        ([[*PARTIAL, "feature_cache.views=5", "trainer.max_epochs=3"]], [3 * 24 + 48]),
        # those of one job are there for another: two views of four, and val and test; images as they are, val and test
        ([["feature_cache.views=2"], ["feature_cache.views=4", "trainer.max_epochs=6"]], [2 * 24 + 48, 2 * 24]),
        ([["feature_cache.views=2"], ["augmentation=none"]], [2 * 24 + 48, 24]),
    ],
)
def test_a_plan_counts_each_view_as_the_runs_do(of_photos, tmp_path, kinds, encoded):
    weights = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    options = ["augmentation=flip_crop", f"backbone.weights={weights}"]
    jobs = [job(of_photos(*options, *each)) for each in kinds]
    book = CostBook(tmp_path / "costs.json", "cpu", 1)
    plan = make_plan(make_tasks(jobs, jobs, []), Datasets(), book, 1)
    assert [cost.encoded for cost in plan.costs] == encoded
    found = [run(one.config, tmp_path / one.id) for one in jobs]
    assert [record.work["images_encoded"] for record in found] == encoded


@pytest.mark.parametrize("shots", [(1, 4), (4, 1)])
def test_room_is_made_for_the_images_of_all_heads(of_photos, tmp_path, shots):
    configs = [of_photos(f"dataset.shots={n}") for n in shots]
    jobs = [job(config) for config in configs]
    assert run_sweep(jobs, tmp_path, "room").ok == 2
    (entry,) = [one for one in store_of(configs[0]).entries() if one.about["kind"] == "activations"]
    encoded = total(records(tmp_path, jobs), "images_encoded")
    assert entry.rows == encoded == entry.reserved_bytes // (entry.row_bytes + 8)


def test_views_that_no_epoch_shows_are_not_made(of_photos, tmp_path):
    """Heads that are trained together, the longest for two epochs."""
    views = ["augmentation=flip_crop", "feature_cache.views=3"]
    jobs = [job(of_photos(*views, f"trainer.max_epochs={epochs}")) for epochs in (1, 2)]
    assert run_sweep(jobs, tmp_path, "views").ok == 2
    assert total(records(tmp_path, jobs), "images_encoded") == 2 * 24 + 24 + 24


@pytest.mark.parametrize(("strategy", "epochs"), [("last_n_blocks", 3), ("feature_extraction", 3), ("lp_ft", 6)])
def test_a_frozen_module_sees_each_image_once(of_photos, tmp_path, monkeypatch, strategy, epochs):
    """Counted where the images come in, at the first convolution; the trial of the cut and its padding are known."""
    seen = []
    call = nn.Module.__call__

    def counting(self, *args, **kwargs):
        if isinstance(self, nn.Conv2d) and self.in_channels == 3:
            seen.append(len(args[0]))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", counting)
    cfg = of_photos(f"freeze_strategy={strategy}", f"trainer.max_epochs={epochs}")
    record = run(cfg, tmp_path)
    encoding = [n for n in seen if n == 32]  # no batch of training or of the trial has as many
    if strategy == "lp_ft":
        assert record.work["cached_phases"] == [0]
        assert record.work["images_encoded"] == 48  # train and val; test is seen by the whole net
        assert sum(encoding) == 64
    else:
        assert record.work["images_encoded"] == 72
        assert sum(n for n in seen if n not in (1, 2, 3)) == 32 * len(encoding) <= 72 + 3 * 31
    assert record.work["images_decoded"] == 72


def test_three_geometries_decode_each_image_once(of_photos, tmp_path):
    jobs = [job(of_photos(f"backbone.preprocessing.image_size={size}")) for size in (32, 40, 48)]
    jobs += [job(of_photos(f"backbone.preprocessing.image_size={size}", "freeze_strategy=full")) for size in (32, 48)]
    assert run_sweep(jobs, tmp_path, "geometries").ok == 5
    found = records(tmp_path, jobs)
    assert total(found, "images_decoded") == 72
    assert total(found, "images_encoded") == 3 * 72


def test_two_at_once_end_as_one_after_the_other(tiny, tmp_path):
    overrides = [["freeze_strategy=full"], ["freeze_strategy=last_n_blocks"], ["optimizer.lr=0.1"], ["optimizer.lr=1"]]
    ends = []
    for at_once in (1, 2):
        where = [ONE_THREAD, f"executor.jobs_per_device={at_once}", f"feature_cache.dir={tmp_path / f'cache{at_once}'}"]
        jobs = [job(tiny(*where, *each)) for each in overrides]
        folder = tmp_path / str(at_once)
        assert run_sweep(jobs, folder, "at once").ok == 4
        ends.append(records(folder, jobs))
    for one, other in zip(*ends, strict=True):
        assert one.job_id == other.job_id
        assert one.best_step == other.best_step
        for split in ("val", "test"):
            assert one.metrics[split] == pytest.approx(other.metrics[split], rel=1e-3)


def test_a_rate_out_of_all_bounds_diverges_alone(tiny, tmp_path):
    jobs = [job(tiny(ONE_THREAD, "trainer.max_epochs=30", f"optimizer.lr={lr}")) for lr in (0.1, 0.01, 1e6, 0.001)]
    outcome = run_sweep(jobs, tmp_path, "rates")
    assert (outcome.ok, len(outcome.bad)) == (3, 1)
    entry = Ledger.open(tmp_path).jobs[jobs[2].id]
    assert entry.state == "diverged"
    assert "not finite at step" in entry.cause
    assert not (tmp_path / jobs[2].id / "record.json").exists()
