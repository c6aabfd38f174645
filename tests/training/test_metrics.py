"""Metrics against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

from tl_experiments.training.metrics import Predictions


@pytest.mark.parametrize("absent", [[], [1]])
def test_metrics_are_scikit_learns(absent):
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (157,), generator=generator)
    label = torch.where(torch.isin(label, torch.tensor(absent)), 0, label) if absent else label
    logits = torch.randn(157, 4, generator=generator)
    metrics = Predictions(torch.arange(157), label, logits).metrics()
    predicted = logits.argmax(1)
    present = [c for c in range(4) if c not in absent]
    assert metrics["accuracy"] == pytest.approx(accuracy_score(label, predicted))
    assert metrics["macro_f1"] == pytest.approx(f1_score(label, predicted, average="macro", labels=present), abs=1e-6)
    assert metrics["nll"] == pytest.approx(log_loss(label, logits.double().softmax(1), labels=range(4)), abs=1e-6)


def test_nan_is_seen_though_argmax_is_class_0():
    logits = torch.full((5, 3), torch.nan)
    predictions = Predictions(torch.arange(5), torch.zeros(5, dtype=torch.long), logits)
    assert predictions.metrics()["accuracy"] == 1.0  # the trap
    assert not predictions.finite()
