"""Tables of predictions against scikit-learn, and names as others may see them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from tests.tracking.conftest import predicted
from tl_experiments.metrics.stored import Predictions
from tl_experiments.tracking.entries import split_key
from tl_experiments.tracking.tables import calibration, chosen_predictions, confusion, per_class, shown_names


def test_a_row_a_class_is_scikit_learns():
    predictions = predicted()
    table = per_class(predictions)
    precision, recall, f1, support = precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=range(4), zero_division=np.nan
    )
    rows = list(table.records())
    assert [row["support"] for row in rows] == support.tolist()
    np.testing.assert_allclose([row["precision"] for row in rows], precision)
    np.testing.assert_allclose([row["recall"] for row in rows[:3]], recall[:3])
    np.testing.assert_allclose([row["f1"] for row in rows[:3]], f1[:3])
    assert (rows[3]["recall"], rows[3]["f1"], rows[3]["auroc"]) == (None, None, None)  # the class has no image


def test_cells_are_scikit_learns():
    predictions = predicted()
    cells = {(actual, guess): images for actual, guess, images in confusion(predictions).rows}
    reference = confusion_matrix(predictions.labels, predictions.predicted, labels=range(4))
    assert cells == {
        (actual, guess): reference[i, j] for i, actual in enumerate("abcd") for j, guess in enumerate("abcd")
    }


@pytest.mark.parametrize(("n_classes", "n", "rows"), [(100, 50, 10_000), (101, 50, None), (300, 40_000, 10_000)])
def test_a_confusion_matrix_has_no_more_rows_than_are_drawn(n_classes, n, rows):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(n_classes), size=n)
    labels = rng.integers(n_classes, size=n)
    names = tuple(str(label) for label in range(n_classes))
    found = confusion(Predictions(names[:1] * n, labels, probabilities, names)).rows
    reference = confusion_matrix(labels, probabilities.argmax(1), labels=range(n_classes))
    filled = int((reference > 0).sum())
    assert len(found) == (min(filled, 10_000) if rows is None else rows)
    assert all(images == reference[int(actual), int(guess)] for actual, guess, images in found)
    if filled > 10_000:  # the smallest are left out
        assert sorted((images for *_, images in found), reverse=True) == sorted(reference.flat, reverse=True)[:10_000]


def test_bins_without_images_are_left_out():
    rows = calibration(predicted()).rows
    assert sum(images for *_, images in rows) == 40
    assert all(confidence is not None and 0 <= accuracy <= 1 for confidence, accuracy, _ in rows)


def test_half_are_the_worst_and_the_sample_is_the_same_for_every_run():
    one, other = predicted(seed=0), predicted(seed=1)
    shown, another = chosen_predictions(one, 10), chosen_predictions(other, 10)
    of_label = one.probabilities[np.arange(40), one.labels]
    assert [f"digits/{i}" for i in np.argsort(of_label)[:5]] == list(shown.items[:5])
    assert [row["chosen"] for row in shown.table.records()] == ["worst"] * 5 + ["sample"] * 5
    assert len(set(shown.items)) == 10
    kept = set(shown.items[5:]) & set(another.items[5:])
    assert len(kept) >= 3  # all but those that are among one's worst


@pytest.mark.parametrize(("n", "rows"), [(0, 0), (1, 1), (40, 40), (99, 40)])
def test_no_more_than_there_are(n, rows):
    assert len(set(chosen_predictions(predicted(), n).items)) == rows


def test_names_are_short_plain_and_apart(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "canary-canary")
    long = "x" * 300
    names = shown_names(["a\x1b[31mb", "<script>", long + "1", long + "2", "of canary-canary", "\ud800"])
    assert all(len(name) <= 70 and name.isprintable() for name in names)
    assert len(set(names)) == len(names)
    assert names[1] == "<script>"  # text as it is: who shows it escapes it
    assert "canary" not in "".join(names)


@pytest.mark.parametrize(
    ("split", "key"),
    [
        ("val", "val"),
        ("test", "test"),
        ("test/sketch", "test/sketch"),
        ("test/../../x", "test/_.._x"),
        ("test/a b/<i>", "test/a_b_i_"),
        ("test/é", "test/_"),
    ],
)
def test_splits_make_keys_that_every_tracker_takes(split, key):
    assert split_key(split) == key
