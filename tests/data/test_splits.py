"""Which image serves where: stratified, nested, and the same whatever else changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from tl_experiments.data.items import SPLITS, Item, Split
from tl_experiments.data.splits import Splits, assign_splits, class_orders, stratified_split, subset
from tl_experiments.errors import DataError

CLASSES = ("a", "b", "c")


def _items(counts: dict[Split | None, tuple[int, ...]]) -> tuple[Item, ...]:
    def generate() -> Iterator[Item]:
        for split, by_class in counts.items():
            for label, count in enumerate(by_class):
                for number in range(count):
                    yield Item(f"{split}/{label}/{number}", label, split)

    return tuple(generate())


def _assign(items: tuple[Item, ...], seed: int = 0, val: float = 0.2, test: float = 0.1) -> Splits:
    return assign_splits(items, CLASSES, val_fraction=val, test_fraction=test, seed=seed)


def _counts(items: tuple[Item, ...], splits: Splits) -> dict[str, list[int]]:
    return {
        split: [Counter(items[index].label for index in splits.indices[split])[label] for label in range(len(CLASSES))]
        for split in SPLITS
    }


GIVEN = {
    "all three": (
        {"train": (5, 5, 1), "val": (2, 1, 1), "test": (1, 1, 3)},
        {"train": [5, 5, 1], "val": [2, 1, 1], "test": [1, 1, 3]},
        (),
    ),
    "no test": (
        {"train": (10, 20, 5), "val": (2, 1, 1)},
        {"train": [8, 16, 4], "val": [2, 4, 1], "test": [2, 1, 1]},
        (
            "No test split: the given val split serves as test.",
            "Carved out of 35 training images: 7 as val (stratified, split_seed 0).",
        ),
    ),
    "no val": (
        {"train": (10, 20, 5), "test": (2, 1, 1)},
        {"train": [8, 16, 4], "val": [2, 4, 1], "test": [2, 1, 1]},
        ("Carved out of 35 training images: 7 as val (stratified, split_seed 0).",),
    ),
    "none": (
        {None: (10, 20, 30)},
        {"train": [7, 14, 21], "val": [2, 4, 6], "test": [1, 2, 3]},
        ("Carved out of 60 training images: 12 as val and 6 as test (stratified, split_seed 0).",),
    ),
    "train only": (
        {"train": (10, 20, 30)},
        {"train": [7, 14, 21], "val": [2, 4, 6], "test": [1, 2, 3]},
        ("Carved out of 60 training images: 12 as val and 6 as test (stratified, split_seed 0).",),
    ),
    "a class missing in val": (
        {"train": (2, 2, 2), "val": (2, 0, 1), "test": (1, 1, 0)},
        {"train": [2, 2, 2], "val": [2, 0, 1], "test": [1, 1, 0]},
        ("val has no image of b (n=0).", "test has no image of c (n=0)."),
    ),
}


@pytest.mark.parametrize("case", GIVEN)
def test_given_splits_are_used_and_missing_ones_are_carved(case: str) -> None:
    given, expected, notes = GIVEN[case]
    items = _items(given)
    splits = _assign(items)
    assert _counts(items, splits) == expected
    assert splits.notes == notes
    everything = np.concatenate(list(splits.indices.values()))
    assert sorted(everything) == list(range(len(items)))


def test_val_becomes_test_whole() -> None:
    items = _items({"train": (10, 10, 10), "val": (2, 2, 2)})
    splits = _assign(items)
    assert all(items[index].split == "val" for index in splits.indices["test"])
    assert all(items[index].split == "train" for index in splits.indices["val"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"val": (1, 1, 1)}, "^dataset: no training images, expected a train split or no splits -> add a train split"),
        (
            {"train": (5, 1, 5), "val": (1, 1, 1)},
            "images of b 1, expected 2 or more of every class: one each for train, val -> add images, or give",
        ),
        ({None: (5, 2, 1)}, "images of b 2, c 1, expected 3 or more of every class: one each for train, val, test"),
    ],
)
def test_what_cannot_be_split_is_refused(given: dict[Split | None, tuple[int, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _assign(_items(given))


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_stratified_split_matches_scikit_learn(fraction: float) -> None:
    items = _items({None: (200, 70, 21)})
    orders = class_orders(items, CLASSES, np.arange(len(items)), "test")
    parts = stratified_split(orders, {"val": fraction})
    labels = np.array([item.label for item in items])
    _, reference = next(StratifiedShuffleSplit(1, test_size=fraction, random_state=0).split(labels, labels))
    difference = np.bincount(labels[parts["val"]], minlength=3) - np.bincount(labels[reference], minlength=3)
    assert np.abs(difference).max() <= 1
    assert sorted(np.concatenate([parts["train"], parts["val"]])) == list(range(len(items)))


@pytest.mark.parametrize("n", range(3, 12))
@pytest.mark.parametrize(("val", "test"), [(0.01, 0.01), (0.49, 0.49), (0.9, 0.05), (0.05, 0.9)])
def test_every_class_is_in_every_part(n: int, val: float, test: float) -> None:
    items = _items({None: (n, n, n)})
    counts = _counts(items, _assign(items, val=val, test=test))
    assert min(count for by_class in counts.values() for count in by_class) >= 1


def test_the_seed_changes_the_split_and_nothing_else_does() -> None:
    items = _items({None: (30, 30, 30)})
    ids = [{items[i].id for i in _assign(items, seed).indices["val"]} for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    turned = items[::-1]
    assert {turned[i].id for i in _assign(turned).indices["val"]} == ids[0]
    without_b = tuple(item for item in items if item.label != 1)
    order = class_orders(without_b, CLASSES, np.arange(len(without_b)), "x")["c"]
    full_order = class_orders(items, CLASSES, np.arange(len(items)), "x")["c"]
    assert [without_b[i].id for i in order] == [items[i].id for i in full_order]


def test_orders_of_two_purposes_and_two_classes_differ() -> None:
    items = tuple(Item(f"{number}", label) for label in range(2) for number in range(30))
    first = class_orders(items, CLASSES, np.arange(60), "split 0")
    second = class_orders(items, CLASSES, np.arange(60), "subset 0")
    assert not np.array_equal(first["a"], second["a"])
    assert not np.array_equal(first["a"], first["b"] - 30)


def _subset(splits: Splits, items: tuple[Item, ...], amount: float | int, seed: int = 0) -> Splits:
    if isinstance(amount, int):
        return subset(splits, items, CLASSES, label_fraction=None, shots=amount, seed=seed)
    return subset(splits, items, CLASSES, label_fraction=amount, shots=None, seed=seed)


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0.01, {"train": [1, 1, 1], "val": [9, 4, 2]}),
        (0.1, {"train": [10, 5, 1], "val": [9, 4, 2]}),
        (1.0, {"train": [100, 50, 6], "val": [9, 4, 2]}),
        (1, {"train": [1, 1, 1], "val": [1, 1, 1]}),
        (6, {"train": [6, 6, 6], "val": [6, 4, 2]}),
    ],
)
def test_subset_sizes(amount: float | int, expected: dict[str, list[int]]) -> None:
    items = _items({"train": (100, 50, 6), "val": (9, 4, 2), "test": (3, 3, 3)})
    assert _counts(items, _subset(_assign(items), items, amount)) == {**expected, "test": [3, 3, 3]}


@pytest.mark.parametrize("amounts", [(0.01, 0.1, 0.3, 0.5, 1.0), (1, 2, 5, 20)])
def test_smaller_subsets_lie_within_larger_ones(amounts: tuple[float | int, ...]) -> None:
    items = _items({None: (60, 50, 40)})
    whole = _assign(items)
    for split in ("train", "val"):
        kept = [set(_subset(whole, items, amount).indices[split].tolist()) for amount in amounts]
        assert all(smaller <= larger for smaller, larger in pairwise(kept))
    assert len(set(_subset(whole, items, amounts[0]).indices["train"])) < len(whole.indices["train"])


def test_subset_seed_changes_the_labels_chosen() -> None:
    items = _items({None: (60, 50, 40)})
    chosen = [tuple(_subset(_assign(items), items, 5, seed).indices["train"]) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_no_limit_changes_nothing() -> None:
    items = _items({None: (6, 5, 4)})
    whole = _assign(items)
    assert subset(whole, items, CLASSES, label_fraction=None, shots=None, seed=0) is whole


def test_too_few_shots() -> None:
    items = _items({"train": (9, 3, 4), "val": (9, 2, 5), "test": (1, 1, 1)})
    with pytest.raises(
        DataError,
        match=r"^dataset\.shots: training images of b 3, c 4, expected 5 or more of every class -> ask for fewer shots",
    ):
        _subset(_assign(items), items, 5)
    assert _subset(_assign(items), items, 3).notes == ("Fewer than 3 val images of: b 2.",)


def test_long_lists_of_classes_are_cut() -> None:
    names = [f"c{number}" for number in range(9)]
    orders = {name: np.array([0]) for name in names}
    with pytest.raises(DataError, match=r"images of c0 1, c1 1, c2 1, c3 1, c4 1, \.\.\. \(9 classes\), expected 2"):
        stratified_split(orders, {"val": 0.5})


def test_the_fingerprint_is_that_of_the_assignment() -> None:
    items = _items({None: (30, 30, 30)})
    prints = [_assign(items, **options).fingerprint(items) for options in ({}, {}, {"seed": 1}, {"val": 0.3})]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
