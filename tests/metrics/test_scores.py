"""Every metric against scikit-learn or torchmetrics."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torchmetrics.functional.classification import multiclass_calibration_error

from tl_experiments.metrics.scores import calibration, confusion, per_class, summary, top_k_accuracy
from tl_experiments.metrics.stored import Predictions


def predictions(n: int, n_classes: int, present: int | None = None, coarse: bool = False, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, present or n_classes, n)
    logits = rng.normal(size=(n, n_classes)) + 2 * np.eye(n_classes)[labels]
    if coarse:
        logits = logits.round()  # many equal probabilities
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(tuple(map(str, range(n))), labels.astype(np.int64), p, tuple(f"c{i}" for i in range(n_classes)))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(("n", "n_classes", "present"), [(300, 4, None), (97, 12, 7), (40, 2, None), (25, 6, 1)])
def test_summary_is_that_of_scikit_learn(n, n_classes, present, coarse):
    data = predictions(n, n_classes, present, coarse)
    p, labels, predicted = data.probabilities, data.labels, data.probabilities.argmax(1)
    there = sorted(set(labels))
    found = summary(data)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(
        reference.f1_score(labels, predicted, labels=there, average="macro", zero_division=0)
    )
    assert found["balanced_accuracy"] == pytest.approx(
        reference.recall_score(labels, predicted, labels=there, average="macro")
    )
    assert found["nll"] == pytest.approx(reference.log_loss(labels, p, labels=range(n_classes)))
    assert ("auroc" in found) == (len(there) > 1)
    if len(there) > 1:
        scores = [reference.roc_auc_score(labels == label, p[:, label]) for label in there]
        assert found["auroc"] == pytest.approx(np.mean(scores))
    assert ("top_5_accuracy" in found) == (n_classes > 5)
    assert all(np.isfinite(list(found.values())))


def test_top_k_is_that_of_scikit_learn():
    data = predictions(200, 12)
    for k in (1, 3, 5, 12):
        expected = reference.top_k_accuracy_score(data.labels, data.probabilities, k=k, labels=range(12))
        assert top_k_accuracy(data, k) == pytest.approx(expected)


def test_tables_by_class_are_those_of_scikit_learn_and_absent_classes_are_nan():
    data = predictions(120, 6, present=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, f1, support = reference.precision_recall_fscore_support(
            data.labels, data.predicted, labels=range(6), zero_division=np.nan
        )
    found = per_class(data)
    np.testing.assert_array_equal(found.support, support)
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.f1[:5], f1[:5])
    assert np.isnan(found.f1[5])
    assert np.isnan(found.auroc[5])
    expected = reference.confusion_matrix(data.labels, data.predicted, labels=range(6))
    np.testing.assert_array_equal(confusion(data), expected)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_is_that_of_torchmetrics(seed):
    data = predictions(400, 5, seed=seed)
    expected = multiclass_calibration_error(
        torch.from_numpy(data.probabilities), torch.from_numpy(data.labels), 5, n_bins=15
    )
    assert calibration(data).error == pytest.approx(float(expected), abs=1e-6)
    assert calibration(data).count.sum() == 400


def test_a_probability_of_zero_costs_much_but_not_everything():
    data = Predictions(("a", "b"), np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), ("x", "y"))
    assert summary(data)["nll"] == pytest.approx(-np.log(np.finfo(float).tiny) / 2)
