"""Two processes on gloo train what one trains."""

from __future__ import annotations

import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import TINY
from tests.training.processes import (
    accident,
    moved,
    no_room,
    processes,
    record_of,
    sigkill,
    sigterm,
    sleep,
    slow,
    weights_after,
    with_a_full_disk,
)
from tests.training.test_resume import assert_equal, ends, lines, three_phases
from tests.training.watching import distance
from tl_experiments.config import compose
from tl_experiments.errors import StorageError, TrainingError
from tl_experiments.interrupt import Interrupted
from tl_experiments.training.run import run

STEPS = 20
# Twenty steps of SGD in batches of 7, 7 and 6: shares of unequal size
ONE_AND_THE_SAME = ["optimizer=sgd", "optimizer.lr=0.05", "trainer.batch_size=7", "trainer.max_epochs=8"]
UNCLIPPED = "trainer.gradient_clip_norm=null"  # clipping would hide a gradient of the wrong length
VIT = [
    "backbone=timm",
    "backbone.name=test_vit",
    "backbone.preprocessing.image_size=32",
    "backbone.kwargs={patch_size: 8}",
]
FROZEN_STATISTICS = ["freeze_strategy.norm_stats=frozen"]
BALANCED = "objective.class_weights=balanced"
DDP = ["trainer=ddp", "trainer.timeout_s=30"]
SAME_BATCH = [*DDP, "trainer.batch_scaling=none"]


@pytest.fixture(scope="module")
def pair():
    with processes(2) as started:
        yield started


def both(tiny, tmp_path, pair, *overrides):
    """What one process trains, and what each of two does."""
    alone = weights_after(tiny(*overrides), tmp_path / "one", STEPS)
    together = pair.do(weights_after, tiny(*overrides, *SAME_BATCH), tmp_path / "two", STEPS)
    for answer in together:
        assert not isinstance(answer, BaseException), answer
    return alone, *together


def as_tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize(
    "overrides",
    [
        [*VIT, UNCLIPPED, "freeze_strategy=full"],
        [*VIT, UNCLIPPED, "freeze_strategy=lp_ft"],
        [*VIT, "freeze_strategy=gradual_unfreezing"],
        [*VIT, "freeze_strategy=last_n_blocks"],
        [UNCLIPPED, "freeze_strategy=feature_extraction"],
        ["freeze_strategy=last_n_blocks", *FROZEN_STATISTICS],
        ["freeze_strategy=full", *FROZEN_STATISTICS, "trainer.accumulation=2", "trainer.gradient_checkpointing=true"],
        ["freeze_strategy=full", *FROZEN_STATISTICS, "augmentation=mixup"],
        [
            "freeze_strategy=full",
            *FROZEN_STATISTICS,
            "augmentation=flip_crop",
            "objective.class_weights=balanced",
            UNCLIPPED,
        ],
    ],
    ids=lambda overrides: " ".join(one.rpartition("=")[2] for one in overrides if not one.startswith("backbone")),
)
def test_twenty_steps_end_where_one_process_does(tiny, tmp_path, pair, overrides):
    alone, first, second = both(tiny, tmp_path, pair, *ONE_AND_THE_SAME, *overrides)
    expected = as_tensors(alone[1])
    assert distance(as_tensors(first[1]), expected) <= 1e-5
    assert all(np.array_equal(first[1][name], second[1][name]) for name in expected)
    for line, wanted in zip(*(lines(tmp_path / name) for name in ("two", "one")), strict=True):
        keys = ("step", "train_loss", "val_nll")
        assert [line[key] or 0 for key in keys] == pytest.approx([wanted[key] or 0 for key in keys], rel=1e-5)
    assert first[0].last_step == alone[0].last_step > STEPS
    assert [phase["steps"] for phase in first[0].phases] == [phase["steps"] for phase in alone[0].phases]
    if "augmentation=mixup" not in overrides and "augmentation=flip_crop" not in overrides:
        assert first[0].work["cached_phases"] == alone[0].work["cached_phases"]


def test_twenty_one_images_are_twenty_one(tiny, tmp_path, pair):
    """In batches of 16 and 5 over two processes, of 8, 8 and 5 in one."""
    overrides = ["freeze_strategy=full", "debug.images_per_split=21", "dataset.shots=null", *ONE_AND_THE_SAME]
    overrides += [*FROZEN_STATISTICS, "trainer.eval_batch_size=8", "trainer.max_epochs=2"]
    alone = run(tiny(*overrides), tmp_path / "one")
    (first, _), (second, _) = pair.do(record_of, tiny(*overrides, *SAME_BATCH), tmp_path / "two")
    assert first == second
    rows, expected = (pq.read_table(tmp_path / name / "predictions.parquet").to_pylist() for name in ("two", "one"))
    keys = ("split", "item", "label")
    assert [[row[key] for key in keys] for row in rows] == [[row[key] for key in keys] for row in expected]
    for row, one in zip(rows, expected, strict=True):
        assert row["probabilities"] == pytest.approx(one["probabilities"], rel=1e-4)
    for split in ("val", "test"):
        assert sum(row["split"] == split for row in rows) == 21
        assert first.metrics[split] == pytest.approx(alone.metrics[split], rel=1e-5)


def test_each_image_is_decoded_and_encoded_once_over_both(tiny, tmp_path, pair, uneven):
    cfg = tiny(*uneven, *DDP, "trainer.max_epochs=4")
    (first, said), (second, silence) = pair.do(record_of, cfg, tmp_path / "two")
    assert first.data["sizes"] == {"train": 54, "val": 12, "test": 12}
    assert first.work == {"images_decoded": 78, "images_encoded": 78, "cached_phases": [0], "together": 1}
    assert second == first
    assert any("trains on activations kept" in line for line in said)
    assert silence == []
    again, _ = pair.do(record_of, cfg, tmp_path / "again")[0]
    assert again.work["images_decoded"] == again.work["images_encoded"] == 0
    assert again.metrics == first.metrics


def test_what_one_prepares_may_take_longer_than_an_exchange(tiny, tmp_path, pair, uneven):
    """Each image is decoded once over both in a phase that is computed in every step, too."""
    cfg = tiny(*uneven, *DDP, "freeze_strategy=lp_ft", "trainer.max_epochs=4", "trainer.timeout_s=4")
    for answer in pair.do(slow, cfg, tmp_path / "two", 1, 6):
        assert not isinstance(answer, BaseException), answer
        assert answer.work == {"images_decoded": 78, "images_encoded": 66, "cached_phases": [0], "together": 1}


def test_an_error_of_the_first_in_writing_is_that_of_all(tiny, tmp_path, pair):
    for error in pair.do(with_a_full_disk, tiny(*DDP), tmp_path / "two", 0):
        assert isinstance(error, StorageError), error


def test_linear_scaling_is_said_and_recorded(tiny, tmp_path, pair):
    rate = tiny().base_lr()
    (record, said), _ = pair.do(record_of, tiny(*DDP), tmp_path / "two")
    batch = f"2 x 8 = 16 images a step over 2 devices; learning rate 2 x {rate:.3g} (linear scaling)"
    assert f"batch     {batch}" in said
    assert f"Batch: {batch}." in record.notes
    assert record.learning_rate == pytest.approx(2 * rate)
    assert record.phases[0]["steps"] == 2 * 2  # of 16 and 4 images
    assert record.environment["devices"] == 2


def live(tiny, *overrides):
    """Three phases with live BatchNorm, dropout, augmentation and an average: everything that could differ."""
    return three_phases(tiny, *SAME_BATCH, "trainer.ema_decay=0.8", "trainer.resume_interval_s=1e9", *overrides)


@pytest.mark.parametrize("at", [0, 6, 13])
def test_a_signal_to_one_ends_both_and_they_go_on_to_the_same_end(tiny, tmp_path, pair, whole_pair, at):
    cfg = live(tiny)
    ended = pair.do(accident, cfg, tmp_path, 1, at, sigterm)
    assert all(isinstance(one, Interrupted) for one in ended), ended
    assert len({str(one) for one in ended}) == 1
    (point,) = tmp_path.glob("resume-*.pt")
    step = int(point.stem.partition("-")[2])
    assert str(ended[0]) == f"SIGTERM after step {step} of 24"
    for record, losses in pair.do(accident, cfg, tmp_path, 1, -1, sigterm):
        assert losses == record.last_step - step
    assert_equal(ends(tmp_path, record), whole_pair)


@pytest.fixture(scope="module")
def whole_pair(tmp_path_factory, pair):
    """An uninterrupted run of ``live`` by two processes."""
    folder = tmp_path_factory.mktemp("whole")
    cfg = live(lambda *overrides: compose([*TINY, f"output_dir={folder}", *overrides]))
    (record, _), _ = pair.do(record_of, cfg, folder)
    assert any(note.startswith("BatchNorm trained with each device's own statistics") for note in record.notes)
    return ends(folder, record)


def test_the_others_wait_as_long_as_they_may_for_one_that_does_not_answer(tiny, tmp_path, pair):
    cfg = tiny(*DDP, "freeze_strategy=full", "trainer.timeout_s=4")
    for what in (no_room, sleep):
        start = time.perf_counter()
        pair.tell(accident, cfg, tmp_path / what.__name__, 1, 2, what)
        waiting = pair.answer(0)
        assert isinstance(waiting, TrainingError)
        assert "process 0 of 2: another process of this job ended or did not answer" in str(waiting)
        assert time.perf_counter() - start < 30  # seconds, and no minutes
        assert isinstance(pair.answer(1), StorageError if what is no_room else TrainingError)
    assert pair.do(record_of, cfg, tmp_path / "after")[0][0].last_step > 0  # they are none the worse for it


def test_the_others_do_not_wait_for_one_that_was_killed(tiny, tmp_path):
    with processes(2) as started:
        cfg = tiny(*DDP, "freeze_strategy=full", "trainer.timeout_s=120")
        started.do(record_of, cfg, tmp_path / "before")
        start = time.perf_counter()
        started.tell(accident, cfg, tmp_path, 0, 2, sigkill)
        waiting = started.answer(1)
        assert isinstance(waiting, TrainingError), waiting
        assert time.perf_counter() - start < 30  # well before ``timeout_s``


def test_weights_that_differ_are_found(tiny, tmp_path, pair):
    for before, when in ((True, "before the first phase"), (False, "after step 2")):
        cfg = tiny(*DDP, "freeze_strategy=full", "trainer.max_epochs=1")
        what = f"weights: 1 tensors differ between the 2 processes {when}, e.g. ['head.weight']"
        for error in pair.do(moved, cfg, tmp_path, 1, before):
            assert str(error).startswith(what)


def test_a_batch_of_fewer_images_than_processes(tiny, tmp_path):
    """Two images are left for the last of three processes, in each epoch; two of twelve are more than nothing."""
    overrides = [*VIT, UNCLIPPED, "freeze_strategy=full", "optimizer=sgd", "optimizer.lr=0.05", "trainer.max_epochs=4"]
    overrides += ["trainer.batch_size=6", BALANCED]
    alone = weights_after(tiny(*overrides), tmp_path / "one", 12)
    with processes(3) as three:
        ddp = tiny(*overrides, *SAME_BATCH, "trainer.devices=3")
        answers = three.do(weights_after, ddp, tmp_path / "three", 12)
    for _, weights, _ in answers:
        assert distance(as_tensors(weights), as_tensors(alone[1])) <= 1e-5
