"""Metrics of many heads against those of one run."""

from __future__ import annotations

import pytest
import torch

from tl_experiments.probes.metrics import metrics_of_each
from tl_experiments.training.metrics import Predictions


@pytest.mark.parametrize("absent", [[], [1], [0, 3]])
@pytest.mark.parametrize("n", [1, 5, 157])
def test_each_head_has_the_metrics_of_a_run(n, absent):
    generator = torch.Generator().manual_seed(n)
    labels = torch.randint(0, 5, (n,), generator=generator)
    labels[torch.isin(labels, torch.tensor(absent))] = 2
    logits = torch.randn(7, n, 5, generator=generator)
    logits[3] = 0.0  # ties
    logits[4] *= 1e3
    found = metrics_of_each(logits, labels)
    for head, own in enumerate(logits):
        expected = Predictions(torch.arange(n), labels, own).metrics()
        assert {name: values[head].item() for name, values in found.items()} == pytest.approx(expected, rel=1e-6)


def test_a_head_that_is_lost_spoils_no_other():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (20,), generator=generator)
    logits = torch.randn(3, 20, 5, generator=generator)
    before = metrics_of_each(logits, labels)
    logits[1] = torch.nan
    after = metrics_of_each(logits, labels)
    assert after["nll"][1].isnan()
    assert all(torch.equal(after[name][[0, 2]], before[name][[0, 2]]) for name in before)
