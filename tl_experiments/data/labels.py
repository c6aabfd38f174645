"""From the words of a file to positions: class names of labels, and our names of splits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from tl_experiments.data.items import Split
from tl_experiments.errors import DataError

# What published data calls its splits.
SPLIT_WORDS: Mapping[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels: in numerical order where all of them are integers, else sorted as text."""
    distinct = set(labels)
    if all(map(is_integer, distinct)):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


def positions(labels: Iterable[str], classes: Collection[str]) -> dict[str, int]:
    """Label -> position in ``classes``, of those that have one.

    Labels are names of classes. Where all labels are integers and no class is called by one, they are positions
    themselves, 0 the first.
    """
    distinct = set(labels)
    if all(map(is_integer, distinct)) and not any(map(is_integer, classes)):
        return {label: int(label) for label in distinct if 0 <= int(label) < len(classes)}
    return {name: number for number, name in enumerate(classes)}


def is_integer(label: str) -> bool:
    """Whether a label is a whole number in decimal digits."""
    return label.isascii() and label.removeprefix("-").isdigit()


def check_classes(key: str, classes: Collection[str]) -> None:
    """Refuse what no classifier can be trained on.

    Raises:
        DataError: Fewer than two classes, or one named twice.
    """
    if len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        raise DataError(key, f"classes named twice: {listed(twice)}", "name each class once")
    if len(classes) < 2:
        raise DataError(key, f"{len(classes)} class ({listed(classes)}), expected 2 or more", "add another class")


def absent(names: Collection[str], present: Collection[int]) -> list[str]:
    """A note for each class without a training image; ``present`` are the labels of those there are."""
    return [f"No training image of {name} (n=0)." for label, name in enumerate(names) if label not in present]


def listed(names: Iterable[object], limit: int = 5) -> str:
    """The first of them, and how many there are."""
    words = [str(name) for name in names]
    shown = ", ".join(words[:limit])
    return f"{shown}, ... ({len(words)} in all)" if len(words) > limit else shown
