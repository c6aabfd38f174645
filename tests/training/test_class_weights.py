"""Balanced class weights: those of scikit-learn, the mean of torch, and the same whichever way a run takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight

from tests.training.test_groups import together
from tl_experiments.config.optimization import Supervised
from tl_experiments.errors import ConfigError
from tl_experiments.objectives.supervised import SupervisedObjective, balanced_weights, build_objective
from tl_experiments.records import RunRecord
from tl_experiments.training.build import build
from tl_experiments.training.run import run

BALANCED = "objective.class_weights=balanced"
VIT = ["backbone=timm", "backbone.name=test_vit", "backbone.preprocessing.image_size=160", "freeze_strategy=full"]


@pytest.mark.parametrize("counts", [(40, 10, 4), (1, 99), (5, 5, 5), (7, 1, 1, 300)])
def test_weights_are_those_of_scikit_learn(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    found = balanced_weights(torch.from_numpy(labels), len(counts))
    assert found.numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_the_weighted_mean_written_out(smoothing, mixed):
    """In numpy; torch divides by the labels' weights, and by the images where labels are mixed."""
    rng = np.random.default_rng(0)
    weight, labels, logits = np.array([0.4, 2.0, 5.0]), np.array([0, 0, 0, 1, 2]), rng.normal(size=(5, 3))
    shares = rng.dirichlet(np.ones(3), size=5) if mixed else np.eye(3)[labels]
    smoothed = (1 - smoothing) * shares + smoothing / 3
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(smoothed * weight * log_p).sum() / (5 if mixed else weight[labels].sum())
    batch = {"label": torch.from_numpy(labels)}
    if mixed:
        batch["target"] = torch.from_numpy(shares).float()
    objective = SupervisedObjective(smoothing, torch.from_numpy(weight).float())
    found = objective.loss(lambda _: torch.from_numpy(logits).float(), batch)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_without_weights_it_divides_by_the_images():
    objective = build_objective(Supervised(name="supervised", label_smoothing=0.1, class_weights="none"), None, 3)
    assert objective.class_weight is None
    assert objective.total_weight({"label": torch.tensor([0, 2, 2])}) == 3


@pytest.mark.parametrize(
    "few", [["dataset.label_fraction=0.5"], ["dataset.folds=3", "dataset.fold=1"], ["debug.images_per_split=20"], []]
)
def test_the_images_that_are_used_count(tiny, uneven, few):
    parts = build(tiny(*uneven, *few, BALANCED))
    labels = parts.data.labels(parts.data.items("train")).numpy()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert parts.objective.class_weight.numpy() == pytest.approx(expected, rel=1e-6)
    assert np.ptp(expected) > 1


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("augmentation", ["none", "mixup"])
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny, tmp_path, uneven, parts, augmentation):
    """Parts of a batch hold other shares of the classes than the batch; LayerNorm alone does not mind parts."""
    options = [*VIT, *uneven, BALANCED, "optimizer=sgd", "optimizer.lr=0.05", f"augmentation={augmentation}"]
    folders = []
    for accumulation in (1, parts):
        folders.append(tmp_path / str(accumulation))
        run(tiny(*options, "trainer.max_epochs=1", f"trainer.accumulation={accumulation}"), folders[-1])
    one, two = (load_file(folder / "checkpoint.safetensors") for folder in folders)
    assert max((one[name] - two[name]).norm() / one[name].norm().clamp(min=1e-3) for name in one) < 1e-5
    losses = [[json.loads(line)["train_loss"] for line in (folder / "metrics.jsonl").open()] for folder in folders]
    assert losses[0][1:] == pytest.approx(losses[1][1:], rel=1e-5)


HEADS = [
    ["objective.class_weights=none"],
    [BALANCED],
    [BALANCED, "objective.label_smoothing=0.2"],
    [BALANCED, "dataset.label_fraction=0.5"],
    [BALANCED, "optimizer=sgd", "optimizer.lr=0.5"],
    ["dataset.sampling=balanced"],
]


def curve(folder, column):
    return [json.loads(line)[column] for line in (folder / "metrics.jsonl").open()][1:]


def test_heads_together_go_the_way_that_each_goes_live(tiny, tmp_path, uneven):
    common = [*uneven, "optimizer.lr=0.05", "trainer.max_epochs=3"]
    assert set(together([tiny(*common, *options) for options in HEADS], tmp_path).values()) == {("ok", None)}
    for number, options in enumerate(HEADS):
        found, live = tmp_path / str(number), tmp_path / "live" / str(number)
        expected = run(tiny(*common, *options, "feature_cache=off"), live)
        assert RunRecord.read(found).job_id == expected.job_id
        for column in ("train_loss", "val_nll"):
            assert curve(found, column) == pytest.approx(curve(live, column), rel=1e-4)
        for other in range(number):
            assert curve(found, "val_nll") != pytest.approx(curve(tmp_path / str(other), "val_nll"), rel=1e-3)


def test_both_at_once_is_said(tiny, uneven):
    twice = "Classes are balanced twice"
    assert any(note.startswith(twice) for note in build(tiny(*uneven, BALANCED, "dataset.sampling=balanced")).notes)
    assert not any(note.startswith(twice) for note in build(tiny(*uneven, BALANCED)).notes)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (BALANCED, r"objective\.class_weights: balanced together with ridge, which is solved .* -> objective\.class_w"),
        ("dataset.sampling=balanced", r"dataset\.sampling: balanced together with ridge, which sees each image once"),
    ],
)
def test_a_solved_head_refuses(tiny, option, message):
    with pytest.raises(ConfigError, match=message):
        tiny("head=ridge", option)
