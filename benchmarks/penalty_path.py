"""Heads for 64 penalties, solved together, against scikit-learn penalty by penalty.

    python benchmarks/penalty_path.py            # writes benchmarks/results/penalty_path.json

1000 x 512 standardised features, 10 classes. Logistic: from the strongest penalty to the weakest with a warm start at
scikit-learn's default tolerance, in float64 and in float32, against our default tolerance in float32; how far each
ends above the minimum stands beside the times. Ridge: one Ridge for each penalty. Everything on one thread in the
thread's own time, in turns; our path against itself is the noise.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"  # before anything that reads it is imported

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

from measure import Report, Row, arguments, ratios, same_side_noise, spread
from tl_experiments.probes.logistic import logistic_path
from tl_experiments.probes.ridge import ridge_path

N, CLASSES = 1000, 10
PENALTIES = np.logspace(-6, 2, 64).tolist()
Heads = tuple[Tensor, Tensor]


def data() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Training and test features and labels."""
    x, y = make_classification(
        2 * N, 512, n_informative=64, n_redundant=300, n_classes=CLASSES, class_sep=2.0, random_state=0
    )
    scaler = StandardScaler().fit(x[:N])
    return scaler.transform(x[:N]), y[:N], scaler.transform(x[N:]), y[N:]


def sklearn_logistic(x: NDArray[np.float64], y: NDArray[np.int64]) -> Heads:
    model = LogisticRegression(warm_start=True, max_iter=1000)
    heads = []
    for penalty in reversed(PENALTIES):
        model.set_params(C=1 / (len(x) * penalty)).fit(x, y)
        heads.append((model.coef_.copy(), model.intercept_.copy()))
    return _stacked(heads[::-1])


def sklearn_ridge(x: NDArray[np.float64], y: NDArray[np.int64]) -> Heads:
    target = np.eye(CLASSES)[y]
    models = [Ridge(alpha=len(x) * penalty).fit(x, target) for penalty in PENALTIES]
    return _stacked([(model.coef_, model.intercept_) for model in models])


def _stacked(heads: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Heads:
    weight, bias = zip(*heads, strict=True)
    return torch.from_numpy(np.stack(weight)), torch.from_numpy(np.stack(bias))


def in_turns(calls: dict[str, Callable[[], Heads]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Heads]]:
    """Seconds of each, and what the last calls gave."""
    times: dict[str, list[float]] = {key: [] for key in calls}
    found = {}
    for number in range(repeats + 1):
        for key, call in calls.items():
            started = time.thread_time()
            found[key] = call()
            if number:
                times[key].append(time.thread_time() - started)
    return times, found


def objectives(heads: Heads, x: Tensor, y: Tensor) -> list[float]:
    """Of the logistic heads, in float64."""
    return [
        (functional.cross_entropy(x @ w.double().T + b.double(), y) + penalty / 2 * w.double().square().sum()).item()
        for w, b, penalty in zip(*heads, PENALTIES, strict=True)
    ]


def accuracies(heads: Heads, x: Tensor, y: Tensor) -> list[float]:
    logits = torch.einsum("nd,pcd->pnc", x, heads[0].double()) + heads[1].double()[:, None]
    return (logits.argmax(2) == y).double().mean(1).tolist()


def main() -> None:
    given = arguments(__doc__).parse_args()
    repeats = 3 if given.short else given.repeats
    torch.set_num_threads(1)
    warnings.simplefilter("error", ConvergenceWarning)
    report = Report("penalty_path", given.short)
    x, y, test_x, test_y = data()
    features, labels = torch.from_numpy(x), torch.from_numpy(y)
    single, test = features.float(), (torch.from_numpy(test_x), torch.from_numpy(test_y))

    def enter(head: str, times: dict[str, list[float]], side: str, remark: str) -> None:
        report.add(
            Row(
                bar="b4",
                what=f"{head}: {side.replace('_', ' ')}",
                peer=f"{head}: 64 penalties together",
                **spread(ratios(times[side], times["together"])),
                sense=">=",
                target=3,
                limit="the decomposition of the features is shared",
                noise=same_side_noise(times["together"], times["again"]),
                remark=remark,
            )
        )

    times, heads = in_turns(
        {
            "together": lambda: logistic_path(single, labels, CLASSES, PENALTIES),
            "again": lambda: logistic_path(single, labels, CLASSES, PENALTIES),
            "scikit_learn": lambda: sklearn_logistic(x, y),
            "scikit_learn_in_float32": lambda: sklearn_logistic(x.astype(np.float32), y),
        },
        repeats,
    )
    lowest = objectives(logistic_path(features, labels, CLASSES, PENALTIES, tolerance=1e-8), features, labels)
    best, excess = {}, {}
    for key in ("together", "scikit_learn", "scikit_learn_in_float32"):
        own = objectives(heads[key], features, labels)
        best[key] = max(accuracies(heads[key], *test))
        excess[key] = max(one / least - 1 for one, least in zip(own, lowest, strict=True))
    report.details["logistic"] = {"seconds": times, "best_accuracy": best, "loss_above_the_minimum": excess}
    for side in ("scikit_learn", "scikit_learn_in_float32"):
        told = f"best test accuracy {best['together']:.3f} against {best[side]:.3f}"
        enter(
            "softmax regression",
            times,
            side,
            f"{told}; {excess['together']:.1e} and {excess[side]:.1e} above the minimum",
        )
    times, heads = in_turns(
        {
            "together": lambda: ridge_path(features, labels, CLASSES, PENALTIES),
            "again": lambda: ridge_path(features, labels, CLASSES, PENALTIES),
            "scikit_learn": lambda: sklearn_ridge(x, y),
        },
        repeats,
    )
    torch.testing.assert_close(heads["together"], heads["scikit_learn"], rtol=1e-6, atol=1e-9)
    report.details["ridge"] = {"seconds": times}
    enter("ridge", times, "scikit_learn", "equal to 1e-6")
    report.write()


if __name__ == "__main__":
    main()
