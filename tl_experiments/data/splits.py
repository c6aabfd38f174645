"""Which image serves where: pure functions from items to train, val and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl_experiments.data.items import SPLITS, Item, Split, fingerprint
from tl_experiments.errors import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """Positions of items in their source, ascending; and what a reader must know about them.

    Args:
        indices: Of each split: train, val, test, then further test sets by name.
        notes: In whole sentences.
    """

    indices: Mapping[Split, Indices]
    notes: tuple[str, ...] = ()

    def fingerprint(self, items: Sequence[Item]) -> str:
        """sha256 over the item ids of each split."""
        return fingerprint(*((items[index].id for index in indices) for indices in self.indices.values()))

    @property
    def tests(self) -> tuple[Split, ...]:
        """``test``, then the further test sets."""
        return tuple(split for split in self.indices if split not in ("train", "val"))


def assign_splits(
    items: Sequence[Item],
    classes: Sequence[str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    folds: int | None = None,
    fold: int = 0,
) -> Splits:
    """Use the splits that the items come in, and carve the missing ones out of train, stratified.

    A given train, val and test are used as they are. Without a test split, val serves as test and a new val is carved
    out of train, so that the epoch is never selected on the images that are reported. Without any split but train,
    both are carved out. Further test sets stay what they are.

    In cross-validation all images but those of a given test split are divided into ``folds`` parts, of which one is
    test and a val is carved out of the others; where a test split is given, the part is val.

    Args:
        items: All items of a source.
        classes: Class names in label order.
        val_fraction: Share of the items in train, or without a split, that becomes val, in (0, 1).
        test_fraction: Share of them that becomes test where no val and no test is given, in (0, 1).
        seed: Seed of the carving; a class's order depends on it, the class's name and its items' ids only.
        folds: Parts in cross-validation, 2 or more; None uses the splits.
        fold: Which of the parts, in [0, folds).

    Raises:
        DataError: There is no train split, or a class has too few images to be in every split.
    """
    given: dict[Split, Indices] = {split: _positions(items, split) for split in SPLITS}
    given |= {split: _positions(items, split) for split in sorted({item.split or "" for item in items} - {"", *SPLITS})}
    given["train"] = np.sort(np.concatenate([given["train"], _positions(items, None)]))
    if not given["train"].size:
        raise DataError("dataset", "no training images, expected a train split or no splits", "add a train split")
    carved: dict[Split, float] = {}
    notes = []
    if folds is not None:
        pool = np.sort(np.concatenate([given["train"], given["val"]]))
        held_out = "val" if given["test"].size else "test"
        part = stratified_folds(class_orders(items, classes, pool, f"folds {seed}"), folds)[fold]
        given |= {"train": np.setdiff1d(pool, part), "val": pool[:0], held_out: part}
        if held_out == "test":
            carved["val"] = val_fraction
        notes.append(
            f"Cross-validation: part {fold} of {folds}, counted from 0, is {held_out}: {part.size} of {pool.size} "
            f"images (stratified, split_seed {seed})."
        )
    elif not given["val"].size:
        carved["val"] = val_fraction
        if not given["test"].size:
            carved["test"] = test_fraction
    elif not given["test"].size:
        carved["val"] = val_fraction
        given["test"] = given["val"]
        notes.append("No test split: the given val split serves as test.")
    if carved:
        orders = class_orders(items, classes, given["train"], f"split {seed}")
        total = given["train"].size
        given |= stratified_split(orders, carved)
        parts = " and ".join(f"{given[split].size} as {split}" for split in carved)
        notes.append(f"Carved out of {total} training images: {parts} (stratified, split_seed {seed}).")
    for split in given:
        present = {items[index].label for index in given[split]}
        if absent := [name for label, name in enumerate(classes) if label not in present]:
            notes.append(f"{split} has no image of {_some(absent)} (n=0).")
    return Splits(given, tuple(notes))


def subset(
    splits: Splits,
    items: Sequence[Item],
    classes: Sequence[str],
    *,
    label_fraction: float | None,
    shots: int | None,
    seed: int,
) -> Splits:
    """Keep some of the labels, stratified and nested: with the same seed, fewer labels lie within more.

    Args:
        splits: All labels.
        items: All items of the source.
        classes: Class names in label order.
        label_fraction: Share of each class's training images, in (0, 1], at least one image each. Val stays whole.
        shots: Training images of each class, and at most as many val images.
        seed: Seed of the order whose beginning is kept.

    Raises:
        DataError: A class has fewer than ``shots`` training images.
    """
    if label_fraction is None and shots is None:
        return splits
    orders: dict[Split, Mapping[str, Indices]] = {
        split: class_orders(items, classes, splits.indices[split], f"subset {seed}") for split in ("train", "val")
    }
    kept, notes = dict(splits.indices), list(splits.notes)
    if label_fraction is not None:
        shares = [order[: _rounded(label_fraction * order.size)] for order in orders["train"].values()]
        kept["train"] = np.sort(np.concatenate(shares))
    if shots is not None:
        if few := [f"{name} {order.size}" for name, order in orders["train"].items() if order.size < shots]:
            what = f"training images of {_some(few)}, expected {shots} or more of every class"
            raise DataError("dataset.shots", what, "ask for fewer shots, or add images")
        for split, by_class in orders.items():
            kept[split] = np.sort(np.concatenate([order[:shots] for order in by_class.values()]))
        if few := [f"{name} {order.size}" for name, order in orders["val"].items() if order.size < shots]:
            notes.append(f"Fewer than {shots} val images of: {_some(few)}.")
    return Splits(kept, tuple(notes))


def few(splits: Splits, images: int | None, same: bool) -> Splits:
    """At most ``images`` of each split, spread evenly over its order and so over the classes.

    Args:
        splits: All that is used.
        images: 1 or more; None keeps all.
        same: Whether val and test become the training images; further test sets stay.
    """
    kept = dict(splits.indices)
    if same:
        kept |= dict.fromkeys(SPLITS, splits.indices["train"])
    if images is not None:
        kept = {
            split: indices[np.linspace(0, indices.size - 1, min(images, indices.size)).round().astype(int)]
            for split, indices in kept.items()
        }
    return Splits(kept, splits.notes)


def stratified_split(orders: Mapping[str, Indices], carved: Mapping[Split, float]) -> dict[Split, Indices]:
    """Cut shares off the classes' orders; what remains is train. Every part gets at least one image of every class.

    Args:
        orders: Class name -> its items, in the order they are given away.
        carved: Part -> its share of each class, in (0, 1); the sum is below 1.

    Returns:
        The parts and ``train``, each ascending.

    Raises:
        DataError: A class has fewer images than there are parts.
    """
    parts: tuple[Split, ...] = ("train", *carved)
    if few := [f"{name} {order.size}" for name, order in orders.items() if order.size < len(parts)]:
        what = f"images of {_some(few)}, expected {len(parts)} or more of every class: one each for {', '.join(parts)}"
        raise DataError("dataset", what, "add images, or give the splits as folders")
    shares: dict[Split, list[Indices]] = {part: [] for part in parts}
    for order in orders.values():
        sizes = [_rounded(share * order.size) for share in carved.values()]
        while sum(sizes) >= order.size:
            sizes[sizes.index(max(sizes))] -= 1
        *cut, remaining = np.split(order, np.cumsum(sizes))
        for part, indices in zip(parts, (remaining, *cut), strict=True):
            shares[part].append(indices)
    return {part: np.sort(np.concatenate(indices)) for part, indices in shares.items()}


def stratified_folds(orders: Mapping[str, Indices], folds: int) -> list[Indices]:
    """Deal the classes' orders out like cards, one class after the other, so that parts and classes differ by one.

    Each part has as many images of each class as scikit-learn's ``StratifiedKFold`` gives it.

    Args:
        orders: Class name -> its items, in the order they are given away.
        folds: Number of parts, 2 or more.

    Returns:
        The parts, each ascending.

    Raises:
        DataError: A class has fewer images than there are parts.
    """
    if few := [f"{name} {order.size}" for name, order in orders.items() if order.size < folds]:
        what = f"images of {_some(few)}, expected {folds} or more of every class: one for each part"
        raise DataError("dataset.folds", what, "ask for fewer folds, or add images")
    deck = np.concatenate(list(orders.values()))
    return [np.sort(deck[fold::folds]) for fold in range(folds)]


def class_orders(items: Sequence[Item], classes: Sequence[str], indices: Indices, purpose: str) -> dict[str, Indices]:
    """Each class's items in a random order that depends on the purpose, the class's name and the ids only.

    Sorting by a hash, unlike a shuffle, keeps the order of the rest when an image or a class is added or removed.

    Args:
        items: All items of a source.
        classes: Class names in label order.
        indices: The items to order.
        purpose: Names the order and holds its seed, so that different choices with one seed are independent.
    """
    orders: dict[str, list[int]] = {name: [] for name in classes}
    for index in indices:
        orders[classes[items[index].label]].append(int(index))

    def key(index: int) -> bytes:
        item = items[index]
        text = "\0".join((purpose, classes[item.label], item.id))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

    return {name: np.array(sorted(members, key=key), dtype=np.int64) for name, members in orders.items()}


def _positions(items: Sequence[Item], split: Split | None) -> Indices:
    return np.array([index for index, item in enumerate(items) if item.split == split], dtype=np.int64)


def _rounded(count: float) -> int:
    return max(1, int(count + 0.5))


def _some(entries: Sequence[str], limit: int = 5) -> str:
    listed = ", ".join(entries[:limit])
    return f"{listed}, ... ({len(entries)} classes)" if len(entries) > limit else listed
