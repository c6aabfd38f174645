"""Nearest neighbours against scikit-learn's, and a head whose size is known from its file alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from tl_experiments.config.heads import KNN, Logistic, Ridge
from tl_experiments.heads import build_head, knn
from tl_experiments.heads.knn import KNNHead, knn_logits

DIM, CLASSES = 12, 6


def images(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES - 1, (n,), generator=generator)  # the last class has no image
    centres = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(99))
    lengths = 0.1 + 5 * torch.rand(n, 1, generator=generator)
    return (centres[labels] + torch.randn(n, DIM, generator=generator)) * lengths, labels


def share(features, labels, new, k, temperature):
    """Votes by cosine distance d: exp((1 - d) / temperature), up to a factor."""
    reference = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature))
    return reference.fit(features.double().numpy(), labels.numpy()).predict_proba(new.double().numpy())


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_are_scikit_learns(monkeypatch, temperature, chunked):
    if chunked:
        monkeypatch.setattr(knn, "_SIMILARITIES", 700)
    (features, labels), (new, _) = images(200, 0), images(50, 1)
    neighbours = [1, 20, 5]
    found = knn_logits(features, labels, new, CLASSES, neighbours, temperature)
    assert found.shape == (3, 50, CLASSES)
    for k, logits in zip(neighbours, found, strict=True):
        expected = np.zeros((50, CLASSES))
        expected[:, :-1] = share(features, labels, new, k, temperature)
        np.testing.assert_allclose(logits.exp(), np.maximum(expected, 1e-6), rtol=1e-3, atol=1e-5)
        assert (logits.argmax(1).numpy() == expected.argmax(1)).all()


def test_a_low_temperature_is_the_nearest_neighbour():
    (features, labels), (new, _) = images(200, 0), images(50, 1)
    sharp, nearest = (
        knn_logits(features, labels, new, CLASSES, [20], 1e-5),
        knn_logits(features, labels, new, CLASSES, [1], 1.0),
    )
    assert torch.isfinite(sharp).all()
    assert torch.equal(sharp[0].argmax(1), nearest[0].argmax(1))


def test_fewer_images_than_neighbours_all_vote():
    (features, labels), (new, _) = images(4, 0), images(5, 1)
    many, all_of_them = knn_logits(features, labels, new, CLASSES, [50, 4], 0.1)
    assert torch.equal(many, all_of_them)


def test_a_head_gives_the_logits_of_its_neighbours():
    (features, labels), (new, _) = images(200, 0), images(50, 1)
    head = build_head(KNN(temperature=0.2), DIM, CLASSES, seed=0)
    head.fill(features, labels, 5)
    torch.testing.assert_close(head(new), knn_logits(features, labels, new, CLASSES, [5], 0.2)[0])
    assert not list(head.parameters())


def test_a_head_takes_the_sizes_of_its_file():
    (features, labels), (new, _) = images(200, 0), images(50, 1)
    head = build_head(KNN(), DIM, CLASSES, seed=0)
    head.fill(features, labels, 7)
    other = torch.nn.Sequential(build_head(KNN(), DIM, CLASSES, seed=1))
    other.load_state_dict({f"0.{name}": tensor for name, tensor in head.state_dict().items()})  # strict
    assert torch.equal(other(new), head(new))


@pytest.mark.parametrize("cfg", [KNN(), Ridge(), Logistic()], ids=lambda cfg: cfg.name)
def test_a_head_that_is_not_solved_prefers_no_class(cfg):
    head = build_head(cfg, DIM, CLASSES, seed=0)
    logits = head(images(5, 0)[0])
    assert logits.shape == (5, CLASSES)
    assert torch.equal(logits, logits[:, :1].expand(-1, CLASSES))


def test_a_head_is_empty_until_it_is_filled():
    assert isinstance(build_head(KNN(), DIM, CLASSES, seed=0), KNNHead)
    assert build_head(KNN(), DIM, CLASSES, seed=0).features.shape == (0, DIM)
