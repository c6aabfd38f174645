"""Classes, confusions and worst images, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from tl_experiments.analysis import evidence
from tl_experiments.analysis.runs import FinishedRun
from tl_experiments.metrics.stored import Predictions
from tl_experiments.report.commands import commands
from tl_experiments.report.details import PAIRS, detail
from tl_experiments.report.sections import class_rows


@pytest.fixture(scope="module")
def arm(make_sweep):
    found = evidence(make_sweep(images=200))
    runs = found.runs[found.comparison.rows[-1].arm]
    return runs, detail(runs)


def test_the_pooled_predictions_are_those_of_all_runs(arm):
    runs, found = arm
    true = np.concatenate([run.predictions["test"].labels for run in runs])
    predicted = np.concatenate([run.predictions["test"].predicted for run in runs])
    assert (found.matrix == confusion_matrix(true, predicted)).all()
    precision, recall, f1, support = precision_recall_fscore_support(true, predicted)
    table, _ = class_rows(found, whole=True)
    expected = zip(support, precision, recall, f1, strict=True)
    assert [row[1:5] for row in table] == [(str(n), *(f"{x:.3f}" for x in rest)) for n, *rest in expected]


def test_the_most_confused_pairs_are_the_largest_off_the_diagonal(arm):
    _, found = arm
    off = found.matrix[~np.eye(len(found.classes), dtype=bool)]
    assert [pair.count for pair in found.pairs] == sorted(off, reverse=True)[:PAIRS]
    first = found.pairs[0]
    row = found.matrix[found.classes.index(first.true)]
    assert (first.count, first.share) == (row[found.classes.index(first.predicted)], first.count / row.sum())


class Fake(FinishedRun):
    """A run whose predictions are given."""

    def __init__(self, items, labels, probabilities):
        self.__dict__["predictions"] = {
            "test": Predictions(tuple(items), np.array(labels), np.array(probabilities), ("a", "b", "c"))
        }


def test_worst_predictions_are_missed_by_most_runs_and_furthest_from_the_truth():
    items, labels = ["right", "once", "sure", "unsure"], [0, 0, 0, 1]
    one = Fake(items, labels, [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.0, 0.9, 0.1], [0.1, 0.4, 0.5]])
    two = Fake(items, labels, [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.1, 0.2, 0.7], [0.5, 0.4, 0.1]])
    worst = detail([one, two]).worst
    assert [(each.item, each.true, each.predicted, each.missed, each.runs) for each in worst] == [
        ("sure", "a", "b", 2, 2),  # b and c once each: b has more probability
        ("unsure", "b", "a", 2, 2),
    ]
    assert (worst[0].of_true, worst[0].confidence) == (pytest.approx(0.05), pytest.approx(0.55))


def test_a_class_without_an_image_is_said():
    found = detail([Fake(["x", "y"], [0, 1], [[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]])])
    assert found.absent == ("c",)
    assert class_rows(found, whole=True)[0][2] == ("c", "0", "n/a", "n/a", "n/a", "n/a")


def run_of(*overrides):
    return FinishedRun(None, None, overrides)


@pytest.mark.parametrize(
    ("runs", "lines"),
    [
        ([], ()),
        ([run_of()], ()),
        ([run_of("a=1", "seed=0"), run_of("a=1", "seed=1")], ("tl train -m a=1 seed=0,1",)),
        (
            [run_of(f"seed={seed}", f"dataset.fold={fold}", "x=y z") for seed in (0, 1) for fold in (0, 1)],
            ("tl train -m seed=0,1 dataset.fold=0,1 'x=y z'",),
        ),
        # not every combination was run
        ([run_of("a=1", "seed=0"), run_of("a=2", "seed=1")], ("tl train -m a=1 seed=0", "tl train -m a=2 seed=1")),
        ([run_of("a=$(rm -r ~)", "seed=0")], ("tl train -m 'a=$(rm -r ~)' seed=0",)),
    ],
)
def test_the_command_of_an_arm(runs, lines):
    assert commands(runs) == lines
