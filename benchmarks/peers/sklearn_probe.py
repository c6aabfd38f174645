"""Encode each image once, standardise, and solve scikit-learn's LogisticRegression for each penalty, warm started."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from by_hand_cached import encode
from shared import Net, given, tell


def main() -> None:
    work = given()
    net = Net(work)
    (train, labels), (val, val_labels), (test, test_labels) = (
        tuple(one.double().numpy() if one.is_floating_point() else one.numpy() for one in encode(net, work, split))
        for split in ("train", "val", "test")
    )
    scaler = StandardScaler().fit(train)
    train, val, test = (scaler.transform(one) for one in (train, val, test))
    model = LogisticRegression(warm_start=True, max_iter=10_000, tol=1e-6)
    scores = []
    warnings.simplefilter("error", ConvergenceWarning)
    for penalty in sorted(work["penalties"], reverse=True):  # of the mean loss + penalty / 2 * |W|^2
        model.set_params(C=1 / (penalty * len(labels)))
        model.fit(train, labels)
        nll = log_loss(val_labels, model.predict_proba(val), labels=model.classes_)
        accuracy = float(np.mean(model.predict(val) == val_labels))
        scores.append((accuracy, float(nll), float(np.mean(model.predict(test) == test_labels))))
    best = max(scores, key=lambda one: one[0])  # the strongest penalty at a tie
    tell([[best[1]]], [best[2]], val_accuracy=best[0])


if __name__ == "__main__":
    main()
