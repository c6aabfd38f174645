"""Cross-validation: every image is tested once, the classes are spread evenly, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from tl_experiments.config.datasets import Digits, ImageFolder
from tl_experiments.data.items import Item, Split
from tl_experiments.data.sources import divide, open_dataset, open_source
from tl_experiments.data.splits import Splits, assign_splits, class_orders, stratified_folds
from tl_experiments.errors import ConfigError, DataError

CLASSES = ("a", "b", "c")


def items_of(counts: Mapping[Split | None, Sequence[int]]) -> tuple[Item, ...]:
    return tuple(
        Item(f"{split}/{label}/{number}", label, split)
        for split, by_class in counts.items()
        for label, count in enumerate(by_class)
        for number in range(count)
    )


def assign(items: tuple[Item, ...], folds: int, fold: int, seed: int = 0) -> Splits:
    return assign_splits(items, CLASSES, val_fraction=0.2, test_fraction=0.3, seed=seed, folds=folds, fold=fold)


def labels_of(items: Sequence[Item]) -> np.ndarray:
    return np.array([item.label for item in items])


@pytest.mark.parametrize("folds", [2, 3, 5, 7])
@pytest.mark.parametrize("counts", [(50, 20, 7), (8, 9, 10), (7, 7, 7), (101, 33, 12)])
def test_as_many_of_each_class_as_in_scikit_learn(folds: int, counts: tuple[int, ...]) -> None:
    items = items_of({None: counts})
    labels = labels_of(items)
    parts = stratified_folds(class_orders(items, CLASSES, np.arange(len(items)), "x"), folds)
    reference = [test for _, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(labels, labels)]
    for part, expected in zip(parts, reference, strict=True):
        assert np.bincount(labels[part], minlength=3).tolist() == np.bincount(labels[expected], minlength=3).tolist()
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(items)))


def test_every_image_is_tested_in_exactly_one_fold() -> None:
    items = items_of({"train": (20, 15, 10), "val": (5, 5, 5)})
    folds = [assign(items, 5, fold) for fold in range(5)]
    tested = np.concatenate([splits.indices["test"] for splits in folds])
    assert sorted(tested.tolist()) == list(range(len(items)))
    for splits in folds:
        assert list(splits.indices) == ["train", "val", "test"]
        assert sorted(np.concatenate(list(splits.indices.values())).tolist()) == list(range(len(items)))
        for split in splits.indices:
            assert set(labels_of(items)[splits.indices[split]]) == {0, 1, 2}
        rest = splits.indices["train"].size + splits.indices["val"].size
        assert splits.indices["val"].size == pytest.approx(0.2 * rest, abs=1.5)
    assert folds[2].notes[0] == (
        "Cross-validation: part 2 of 5, counted from 0, is test: 12 of 60 images (stratified, split_seed 0)."
    )
    assert folds[2].notes[1].startswith("Carved out of 48 training images: ")


def test_a_given_test_split_stays_and_the_fold_is_val() -> None:
    items = items_of({"train": (20, 15, 10), "val": (5, 5, 5), "test": (3, 3, 3)})
    folds = [assign(items, 3, fold) for fold in range(3)]
    given = {index for index, item in enumerate(items) if item.split == "test"}
    for splits in folds:
        assert set(splits.indices["test"].tolist()) == given
        assert sorted(np.concatenate(list(splits.indices.values())).tolist()) == list(range(len(items)))
        assert splits.notes == (splits.notes[0],)
    validated = np.concatenate([splits.indices["val"] for splits in folds])
    assert sorted(validated.tolist()) == sorted(set(range(len(items))) - given)


def test_the_seed_changes_the_folds_and_the_order_of_the_files_does_not() -> None:
    items = items_of({None: (30, 30, 30)})
    tested = [{items[i].id for i in assign(items, 3, 0, seed).indices["test"]} for seed in (0, 0, 1)]
    assert tested[0] == tested[1] != tested[2]
    turned = items[::-1]
    assert {turned[i].id for i in assign(turned, 3, 0).indices["test"]} == tested[0]


@pytest.mark.parametrize(
    ("counts", "folds", "message"),
    [
        ((9, 4, 2), 5, r"^dataset\.folds: images of b 4, c 2, expected 5 or more of every class: one for each part"),
        ((9, 2, 9), 2, "images of b 1, expected 2 or more of every class: one each for train, val"),
    ],
)
def test_a_class_that_is_too_small_is_refused(counts: tuple[int, ...], folds: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        assign(items_of({None: counts}), folds, 0)


@pytest.mark.parametrize("options", [{"shots": 3}, {"label_fraction": 0.1}])
def test_few_labels_are_taken_of_what_the_fold_leaves(
    options: dict[str, float], digits_cfg: Callable[..., Digits]
) -> None:
    source = open_source(digits_cfg())
    labels = labels_of(source.items)
    tested = []
    for fold in range(4):
        opened = divide(source, digits_cfg(folds=4, fold=fold, **options), 0)
        whole, used = opened.whole.indices, opened.used.indices
        assert np.array_equal(whole["test"], used["test"])
        assert set(used["train"]) < set(whole["train"])
        assert not set(used["train"]) & set(used["test"])
        if "shots" in options:
            assert np.bincount(labels[used["train"]]).tolist() == [3] * 10
        tested.append(used["test"])
    assert sorted(np.concatenate(tested).tolist()) == list(range(len(labels)))


def test_folds_are_other_data_with_the_same_images(
    make_folder: Callable[..., Path], folder_cfg: Callable[..., ImageFolder]
) -> None:
    root = make_folder({"a": 12, "b": 12})
    opened = [open_dataset(folder_cfg(root, folds=3, fold=fold), 0) for fold in range(3)]
    assert len({one.source.fingerprint for one in opened}) == 1
    assert len({one.fingerprint for one in opened}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "^folds: got 1, expected 2 or more"),
        ({"folds": 5, "fold": 5}, "^fold: got 5, expected 0 to 4"),
        ({"fold": 1}, "^fold: got 1, expected 0 without folds"),
    ],
)
def test_a_fold_that_there_is_not_is_refused(
    options: dict[str, int], message: str, digits_cfg: Callable[..., Digits]
) -> None:
    with pytest.raises(ConfigError, match=message):
        digits_cfg(**options)
