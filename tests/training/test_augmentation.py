"""Augmentations in whole runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from tl_experiments.config import compose
from tl_experiments.config.optimization import Supervised
from tl_experiments.errors import ConfigError
from tl_experiments.objectives import build_objective
from tl_experiments.training.run import run

AUGMENTATIONS = ["flip_crop", "trivial", "randaugment", "mixup", "cutmix"]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_against_mixed_labels(smoothing):
    """The mean over the classes' losses, weighted by their shares; smoothing takes from all of them alike."""
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(6, 4)), rng.dirichlet(np.ones(4), 6)
    cfg = Supervised(name="supervised", label_smoothing=smoothing, class_weights="none")
    objective = build_objective(cfg, torch.zeros(6, dtype=torch.long), 4)
    batch = {"image": torch.tensor(logits), "label": torch.zeros(6, dtype=int), "target": torch.tensor(target).float()}
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    smoothed = (1 - smoothing) * target + smoothing / 4
    rows = np.repeat(np.arange(6), 4)
    expected = log_loss(
        np.tile(np.arange(4), 6), probabilities[rows], sample_weight=smoothed.flatten(), labels=np.arange(4)
    )
    assert objective.loss(lambda given: given["image"], batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_run_does_not_depend_on_its_workers(tiny, tmp_path, name):
    records = [
        run(
            tiny(f"augmentation={name}", "freeze_strategy=full", f"trainer.num_workers={workers}"),
            tmp_path / str(workers),
        )
        for workers in (0, 2)
    ]
    assert records[0].metrics == records[1].metrics
    lines = [(tmp_path / str(workers) / "metrics.jsonl").read_text().splitlines() for workers in (0, 2)]
    assert [line.partition('"seconds"')[0] for line in lines[0]] == [
        line.partition('"seconds"')[0] for line in lines[1]
    ]
    assert records[0].config["augmentation"]["name"] == name


@pytest.mark.parametrize("name", ["trivial", "randaugment"])
def test_colours_need_one_or_three_channels(name):
    folder = ["dataset=image_folder", "dataset.root=photos", f"augmentation={name}"]
    for channels in (1, 3):
        compose([*folder, f"dataset.channels={channels}"])
    with pytest.raises(ConfigError, match=rf"^augmentation: {name} changes colours, for which 1 or 3 .* got 4 -> "):
        compose([*folder, "dataset.channels=4"])


def test_bands_are_not_cropped_with_lanczos():
    folder = ["dataset=image_folder", "dataset.root=photos", "dataset.channels=13"]
    lanczos = "backbone.preprocessing.interpolation=lanczos"
    compose([*folder, lanczos])
    with pytest.raises(ConfigError, match=r"^backbone.preprocessing.interpolation: lanczos together .*-> give bicubic"):
        compose([*folder, lanczos, "augmentation=flip_crop"])
