"""Runs whose classes are balanced, by sampling or by weights: the same cached, live and resumed."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.training.test_groups import PulledPlugError, assert_same_bits, left, together
from tests.training.test_resume import assert_equal, ends, killed_at
from tests.training.watching import distance
from tl_experiments.records import RunRecord
from tl_experiments.training.groups import group_key
from tl_experiments.training.run import run

TAIL = ["freeze_strategy=last_n_blocks", "freeze_strategy.n=1", "trainer.max_epochs=3"]
IMAGES = 54 + 12 + 12  # of all splits
WEIGHTS, SAMPLING = "objective.class_weights=balanced", "dataset.sampling=balanced"


@pytest.mark.parametrize("option", [WEIGHTS, SAMPLING])
def test_a_cached_tail_ends_where_the_live_run_ends(tiny, tmp_path, uneven, option):
    cached, live = (
        run(tiny(*uneven, *TAIL, option, f"feature_cache={way}"), tmp_path / way) for way in ("auto", "off")
    )
    assert cached.work["cached_phases"] == [0]
    assert live.work["cached_phases"] == []
    if option == SAMPLING:  # each epoch draws 18 of the 40 ants
        assert cached.work["images_encoded"] < IMAGES
    else:
        assert cached.work["images_encoded"] == IMAGES
    one, two = (load_file(tmp_path / way / "checkpoint.safetensors") for way in ("auto", "off"))
    assert distance(one, two) <= 1e-3
    assert cached.metrics["val"] == pytest.approx(live.metrics["val"], rel=1e-3)


@pytest.mark.parametrize("steps", [2, 7, 13])  # of 7 an epoch
@pytest.mark.parametrize("augmentation", ["none", "flip_crop", "mixup"])
def test_cut_anywhere_it_ends_the_same(tiny, tmp_path, monkeypatch, uneven, steps, augmentation):
    options = ["trainer.max_epochs=2", "trainer.resume_interval_s=0", f"augmentation={augmentation}", SAMPLING, WEIGHTS]
    cfg = tiny(*uneven, *options, "freeze_strategy=full")
    whole = ends(tmp_path / "whole", run(cfg, tmp_path / "whole"))
    killed_at(cfg, tmp_path / "cut", steps, monkeypatch)
    assert_equal(ends(tmp_path / "cut", run(cfg, tmp_path / "cut")), whole)


@pytest.mark.parametrize("calls", [0, 3, 5])
def test_heads_together_that_were_killed_end_the_same(tiny, tmp_path, uneven, calls):
    common = [*uneven, "trainer.resume_interval_s=0", "optimizer.lr=0.05"]
    configs = [tiny(*common, *options) for options in ([SAMPLING, WEIGHTS], [SAMPLING], [WEIGHTS], [])]
    together(configs, tmp_path / "whole")
    seen = 0

    def progress(*_):
        nonlocal seen
        if seen == calls:
            raise PulledPlugError
        seen += 1

    with pytest.raises(PulledPlugError):
        together(configs, tmp_path / "killed", progress=progress)
    together(configs, tmp_path / "killed")
    for number in range(4):
        assert_same_bits(left(tmp_path / "killed" / str(number)), left(tmp_path / "whole" / str(number)))


def test_folds_share_images_and_features(tiny, tmp_path, uneven):
    """However a dataset is divided, its images are decoded and encoded once."""
    options = [[f"dataset.fold={fold}", "dataset.folds=4"] for fold in range(4)]
    options += [["dataset.split_seed=3", "dataset.folds=2"], [SAMPLING], []]
    configs = [tiny(*uneven, *one) for one in options]
    assert len({group_key(cfg) for cfg in configs}) == 1
    assert set(together(configs, tmp_path).values()) == {("ok", None)}
    records = [RunRecord.read(tmp_path / str(number)) for number in range(len(configs))]
    assert len({record.job_id for record in records}) == len(configs)
    assert [record.arm["dataset"] for record in records[3:]] == [
        "uneven, 4 folds",
        "uneven, 2 folds",
        "uneven",
        "uneven",
    ]
    assert sum(record.work["images_decoded"] for record in records) == IMAGES
    assert sum(record.work["images_encoded"] for record in records) == IMAGES
