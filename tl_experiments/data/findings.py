"""What is wrong with a dataset although every image decodes: copies across splits, and labels that contradict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tl_experiments.data.items import Checked, Source, Split
from tl_experiments.data.splits import Indices

NEAR_BITS = 4  # of 64 by which near duplicates differ at most
_ROWS_AT_ONCE = 2048  # of a matrix of distances
_SHOWN = 3


@dataclass(frozen=True)
class Copies:
    """Items with the same bytes.

    Args:
        items: Positions in the source, ascending, two or more.
        splits: In which they are, two or more where the test has been seen in training.
    """

    items: tuple[int, ...]
    splits: tuple[Split, ...]

    @property
    def leak(self) -> bool:
        """Whether they lie in more than one split."""
        return len(self.splits) > 1


def copies(checked: Sequence[Checked], splits: Mapping[Split, Indices]) -> list[Copies]:
    """Groups of items with the same bytes.

    Args:
        checked: What is known of each item of a source.
        splits: Its items, by split.
    """
    where: dict[int, list[Split]] = defaultdict(list)
    for split, items in splits.items():
        for index in items.tolist():
            where[index].append(split)
    same: dict[str, list[int]] = defaultdict(list)
    for index in sorted(where):
        same[checked[index].digest].append(index)
    found = []
    for digest, group in same.items():
        if digest and len(group) > 1:
            there = {split for index in group for split in where[index]}
            found.append(Copies(tuple(group), tuple(split for split in splits if split in there)))
    return found


def leakage_notes(source: Source, splits: Mapping[Split, Indices]) -> tuple[str, ...]:
    """A sentence where the same bytes stand in two splits."""
    if source.check is None:  # rendered, or a set whose repetitions everybody compares with
        return ()
    leaks = [group for group in copies(source.check(), splits) if group.leak]
    if not leaks:
        return ()
    examples = "; ".join(
        " = ".join(source.items[index].id for index in group.items[:_SHOWN]) for group in leaks[:_SHOWN]
    )
    return (
        f"{len(leaks)} images stand in more than one split, so that results on them are no evidence "
        f"({examples}{'; ...' if len(leaks) > _SHOWN else ''}).",
    )


def conflicts(source: Source, groups: Sequence[Copies]) -> list[Copies]:
    """Those of the groups whose items have different labels."""
    return [group for group in groups if len({source.items[index].label for index in group.items}) > 1]


@dataclass(frozen=True)
class Near:
    """Two images of different splits that look alike without being the same file.

    Args:
        items: Positions in the source.
        splits: Of the two.
        bits: Of 64 by which their perceptual hashes differ.
    """

    items: tuple[int, int]
    splits: tuple[Split, Split]
    bits: int


def near_duplicates(checked: Sequence[Checked], splits: Mapping[Split, Indices]) -> list[Near]:
    """Pairs across splits whose perceptual hashes differ by ``NEAR_BITS`` or fewer: a hint, to be looked at.

    Args:
        checked: What is known of each item of a source.
        splits: Its items, by split.
    """
    found: dict[tuple[int, int], Near] = {}
    for first, second in combinations(splits, 2):
        a, b = (_with_signature(checked, splits[split]) for split in (first, second))
        for one, other, bits in _close(checked, a, b):
            if one != other and checked[one].digest != checked[other].digest:
                found.setdefault((one, other), Near((one, other), (first, second), bits))
    return list(found.values())


def _with_signature(checked: Sequence[Checked], items: Indices) -> Indices:
    return np.array([index for index in items.tolist() if checked[index].signature is not None], dtype=np.int64)


def _close(checked: Sequence[Checked], a: Indices, b: Indices) -> Iterator[tuple[int, int, int]]:
    if not (a.size and b.size):
        return
    right = _bits(checked, b)
    for start in range(0, a.size, _ROWS_AT_ONCE):
        rows = a[start : start + _ROWS_AT_ONCE]
        # of vectors of +1 and -1 the product counts the equal bits less the others
        distance = (64 - _bits(checked, rows) @ right.T) / 2
        for i, j in np.argwhere(distance <= NEAR_BITS).tolist():
            yield int(rows[i]), int(b[j]), int(distance[i, j])


def _bits(checked: Sequence[Checked], items: Indices) -> NDArray[np.float32]:
    numbers = np.array([checked[index].signature for index in items.tolist()], dtype=">u8")
    return np.unpackbits(numbers.view(np.uint8).reshape(-1, 8), axis=1).astype(np.float32) * 2 - 1
