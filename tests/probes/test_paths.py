"""Solved heads against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from tl_experiments.probes.logistic import logistic_path
from tl_experiments.probes.ridge import ridge_path
from tl_experiments.probes.standardise import standardisation

CLASSES = 5


def problem(n, dim, seed=0):
    """Features of very different scales and means, a third of them products of others, and their labels."""
    x, y = make_classification(
        n, dim, n_informative=8, n_redundant=dim // 3, n_classes=CLASSES, class_sep=1.5, random_state=seed
    )
    scales = np.random.default_rng(seed).uniform(0.1, 3, dim)
    return torch.from_numpy(x * scales + scales), torch.from_numpy(y)


def objective(weight, bias, features, labels, penalty):
    logits = features.double() @ weight.double().T + bias.double()
    return (
        torch.nn.functional.cross_entropy(logits, labels).item() + penalty / 2 * weight.double().square().sum().item()
    )


@pytest.mark.parametrize(("n", "dim"), [(200, 30), (40, 60), (50, 50)])
def test_ridge_is_scikit_learns(n, dim):
    features, labels = problem(n, dim)
    penalties = [10.0, 1e-4, 1e-2, 1.0]
    weight, bias = ridge_path(features, labels, CLASSES, penalties)
    assert weight.shape == (4, CLASSES, dim)
    for found, found_bias, penalty in zip(weight, bias, penalties, strict=True):
        reference = Ridge(alpha=n * penalty, solver="svd").fit(features.numpy(), np.eye(CLASSES)[labels])
        np.testing.assert_allclose(found, reference.coef_, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(found_bias, reference.intercept_, rtol=1e-8, atol=1e-8)


def test_ridge_in_float32_is_solved_in_float64():
    features, labels = problem(200, 30)
    weight, _ = ridge_path(features.float(), labels, CLASSES, [1e-4])
    assert weight.dtype == torch.float32
    exact, _ = ridge_path(features.float().double(), labels, CLASSES, [1e-4])
    assert torch.equal(weight, exact.float())


def test_ridge_on_constant_features_says_the_share_of_each_class():
    labels = torch.tensor([0, 0, 1, 2])
    weight, bias = ridge_path(torch.ones(4, 3), labels, 4, [1e-3])
    assert not weight.any()
    torch.testing.assert_close(bias[0], torch.tensor([0.5, 0.25, 0.25, 0.0]))


PATHS = {
    "decades": [1e-4, 1e-5, 1e-3, 1e-2, 0.1, 1.0],
    "dense": np.logspace(-5, 1, 33).tolist(),
    "one": [1e-3],
    "twice": [1e-2, 1.0, 1e-2],
}


@pytest.mark.parametrize(("n", "dim"), [(300, 30), (60, 90)])
@pytest.mark.parametrize("path", PATHS)
def test_logistic_is_scikit_learns(path, n, dim):
    features, labels = problem(n, dim)
    new, _ = problem(200, dim, seed=1)
    penalties = PATHS[path]
    weight, bias = logistic_path(features, labels, CLASSES, penalties, tolerance=1e-9)
    assert weight.shape == (len(penalties), CLASSES, dim)
    for found, found_bias, penalty in list(zip(weight, bias, penalties, strict=True))[::4]:
        reference = LogisticRegression(C=1 / (n * penalty), tol=1e-9, max_iter=100_000)
        reference.fit(features.numpy(), labels.numpy())
        coef, intercept = torch.from_numpy(reference.coef_), torch.from_numpy(reference.intercept_)
        expected = objective(coef, intercept, features, labels, penalty)
        assert objective(found, found_bias, features, labels, penalty) == pytest.approx(expected, rel=1e-6)
        predicted = (new @ found.T + found_bias).argmax(1)
        assert (predicted.numpy() == reference.predict(new.numpy())).all()


def test_logistic_in_float32_ends_within_its_tolerance(caplog):
    features, labels = problem(300, 30)
    penalties = np.logspace(-6, 2, 20).tolist()
    exact = logistic_path(features, labels, CLASSES, penalties, tolerance=1e-9)
    found = logistic_path(features.float(), labels, CLASSES, penalties)
    assert not caplog.records
    for number, penalty in enumerate(penalties):
        one, other = (objective(w[number], b[number], features, labels, penalty) for w, b in (exact, found))
        assert other == pytest.approx(one, rel=1e-4)
        assert (features @ found[0][number].double().T + found[1][number]).isfinite().all()


def test_logistic_says_when_it_stops_short(caplog):
    features, labels = problem(100, 30)
    logistic_path(features, labels, CLASSES, [1e-6, 1.0], max_iterations=4)
    assert caplog.messages == ["logistic: 2 of 2 penalties stopped short of a relative tolerance of 0.0001"]


def test_logistic_with_a_class_that_has_no_image():
    features, labels = problem(100, 30)
    labels = labels.clamp(max=CLASSES - 2)
    weight, bias = logistic_path(features, labels, CLASSES, [1e-3, 0.1])
    assert torch.isfinite(weight).all()
    logits = torch.einsum("nd,pcd->pnc", features, weight) + bias[:, None]
    assert (logits.argmax(2) != CLASSES - 1).all()


def test_logistic_on_constant_features_says_the_share_of_each_class():
    labels = torch.tensor([0, 0, 1, 2])
    weight, bias = logistic_path(torch.ones(4, 3), labels, 3, [1e-2], tolerance=1e-9)
    assert not weight.any()
    torch.testing.assert_close(bias[0].softmax(0), torch.tensor([0.5, 0.25, 0.25]), atol=1e-4, rtol=0)


def test_standardisation_is_scikit_learns():
    features, _ = problem(100, 12)
    found = standardisation(features)
    reference = StandardScaler().fit(features.numpy())
    np.testing.assert_allclose(found.apply(features), reference.transform(features.numpy()), rtol=1e-9, atol=1e-9)


def test_a_constant_feature_is_not_blown_up():
    features, labels = problem(100, 12)
    features[:, 3] = 7.0
    features[:, 4] = 1e4 + 1e-9 * features[:, 4]
    found = standardisation(features.float())
    assert found.apply(features.float())[:, 3:5].abs().max() < 1
    new = features.float()
    new[:, 3] += 0.5
    weight, bias = ridge_path(found.apply(features.float()), labels, CLASSES, [1e-4])
    folded, shift = found.fold(weight[0], bias[0])
    torch.testing.assert_close(new @ folded.T + shift, features.float() @ folded.T + shift, rtol=1e-3, atol=1e-3)
    assert torch.equal(standardisation(torch.ones(5, 3)).apply(torch.ones(5, 3)), torch.zeros(5, 3))


def test_a_folded_head_gives_the_same_logits():
    features, labels = problem(100, 12)
    standard = standardisation(features)
    weight, bias = logistic_path(standard.apply(features), labels, CLASSES, [1e-3, 1e-1])
    folded, shift = standard.fold(weight, bias)
    expected = torch.einsum("nd,pcd->pnc", standard.apply(features), weight) + bias[:, None]
    found = torch.einsum("nd,pcd->pnc", features, folded) + shift[:, None]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
