"""What a dataset holds and what is wrong with it, for people and as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tl_experiments.data.checking import check_loaded
from tl_experiments.data.findings import Copies, Near, conflicts, copies, near_duplicates
from tl_experiments.data.items import Checked, Source
from tl_experiments.data.splits import Indices, Splits
from tl_experiments.safe_text import plain, storable

_SHOWN = 5  # examples of a finding
_CLASSES_SHOWN = 40
_IMBALANCED = 10  # times the smallest class


@dataclass(frozen=True)
class Census:
    """One dataset, counted.

    Args:
        name: Of the dataset.
        source: Its items.
        splits: How a run would divide them.
        checked: What is known of each item.
        copied: Items with the same bytes.
        near: Pairs across splits that look alike.
    """

    name: str
    source: Source
    splits: Splits
    checked: Sequence[Checked]
    copied: Sequence[Copies]
    near: Sequence[Near]

    @property
    def broken(self) -> Mapping[str, str]:
        """Path -> reason, of items that cannot be used, whether or not they are left out."""
        bad = {one.path: one.problem for one in self.checked if one.problem is not None}
        return {**bad, **self.source.skipped}

    @property
    def leaks(self) -> list[Copies]:
        """Those of the copies that stand in more than one split."""
        return [group for group in self.copied if group.leak]

    @property
    def contradictions(self) -> list[Copies]:
        """Those of the copies that have different labels."""
        return conflicts(self.source, self.copied)

    @property
    def hurts(self) -> bool:
        """Whether results on this dataset would be wrong: broken images, leakage, contradicting labels."""
        return bool(self.broken or self.leaks or self.contradictions)


def take_census(name: str, source: Source, splits: Splits) -> Census:
    """Count a dataset; every file is decoded once, unless that is remembered.

    Args:
        name: Of the dataset.
        source: Its items.
        splits: How a run would divide them.
    """
    checked = check_loaded(source) if source.check is None else source.check()
    used = splits.indices
    return Census(name, source, splits, checked, copies(checked, used), near_duplicates(checked, used))


def as_values(census: Census) -> dict[str, Any]:
    """Everything of a census, complete, as JSON has it."""
    ids = [storable(item.id) for item in census.source.items]
    return {
        "dataset": census.name,
        "images": len(ids),
        "classes": {storable(name): dict(counts) for name, counts in _by_class(census).items()},
        "sizes": _sizes(census.checked),
        "formats": Counter(one.format for one in census.checked if one.format),
        "modes": Counter(one.mode for one in census.checked if one.mode),
        "broken": [{"path": storable(path), "reason": storable(why)} for path, why in census.broken.items()],
        "copies": [{"items": [ids[index] for index in group.items], "splits": group.splits} for group in census.copied],
        "contradictions": [[ids[index] for index in group.items] for group in census.contradictions],
        "near_duplicates": [
            {"items": [ids[index] for index in pair.items], "splits": pair.splits, "bits": pair.bits}
            for pair in census.near
        ],
        "imbalance": _imbalance(census),
        "notes": [storable(note) for note in (*census.source.notes, *census.splits.notes)],
    }


def as_text(census: Census) -> str:
    """The census for a terminal, with examples of each finding."""
    source, ids = census.source, [item.id for item in census.source.items]
    lines = [f"{census.name}: {len(ids)} images, {len(source.classes)} classes", *_table(census), ""]
    lines += [f"note      {note}" for note in (*source.notes, *census.splits.notes)]
    lines += _size_lines(census.checked)
    kinds = (_counted(one.format for one in census.checked), _counted(one.mode for one in census.checked))
    lines.append("files     " + "; ".join(kinds))
    lines += _finding("broken", "images cannot be used", [f"{path}: {why}" for path, why in census.broken.items()])
    across = [" = ".join(ids[index] for index in group.items) for group in census.leaks]
    lines += _finding("leakage", "images stand in more than one split, byte for byte", across)
    within = [" = ".join(ids[index] for index in group.items) for group in census.copied if not group.leak]
    lines += _finding("copies", "images stand more than once in a split", within)
    contradicting = [
        " = ".join(f"{ids[index]} ({source.classes[source.items[index].label]})" for index in group.items)
        for group in census.contradictions
    ]
    lines += _finding("labels", "images have several labels", contradicting)
    alike = [f"{ids[pair.items[0]]} ~ {ids[pair.items[1]]} ({pair.bits} of 64 bits differ)" for pair in census.near]
    lines += _finding("alike", "pairs across splits look alike: a hint, look at them", alike)
    ratio = _imbalance(census)
    if ratio is not None and ratio >= _IMBALANCED:
        lines.append(
            f"balance   the largest class of train is {ratio:.0f} times the smallest: dataset.sampling=balanced"
        )
    lines.append("verdict   " + _verdict(census))
    return "\n".join(map(_line, lines))


def _verdict(census: Census) -> str:
    said = {
        "broken images": census.broken,
        "leakage": census.leaks,
        "contradicting labels": census.contradictions,
    }
    hurting = [name for name, found in said.items() if found]
    return f"mend before training: {', '.join(hurting)}" if hurting else "fit for training"


def _line(text: str) -> str:
    """Safe on a terminal; leading blanks are kept."""
    return " " * (len(text) - len(text.lstrip(" "))) + _spaced(text)


def _spaced(text: str) -> str:
    """``plain`` of each word, with the blanks between columns as they are."""
    return " ".join(plain(word) for word in text.strip(" ").split(" "))


def _finding(name: str, what: str, found: Sequence[str]) -> list[str]:
    if not found:
        return [f"{name:<10}none"]
    more = [f"          ... ({len(found)} in all, --json FILE has them)"] if len(found) > _SHOWN else []
    return [f"{name:<10}{len(found)} {what}", *(f"          {plain(one)}" for one in found[:_SHOWN]), *more]


def _by_class(census: Census) -> dict[str, Counter[str]]:
    source = census.source
    counts: dict[str, Counter[str]] = {name: Counter() for name in source.classes}
    for split, indices in census.splits.indices.items():
        for index in indices.tolist():
            counts[source.classes[source.items[index].label]][split] += 1
    return counts


def _table(census: Census) -> Iterator[str]:
    splits = list(census.splits.indices)
    counts = {plain(name): [one[split] for split in splits] for name, one in _by_class(census).items()}
    shown = dict(list(counts.items())[:_CLASSES_SHOWN])
    width = min(40, max(len(name) for name in (*shown, "all")))
    columns = [max(6, len(split) + 1) for split in splits]

    def row(name: str, cells: Iterable[object]) -> str:
        numbers = "".join(f"{cell:>{column}}" for cell, column in zip(cells, columns, strict=True))
        return f"  {name[:width]:<{width}}{numbers}"

    yield row("", splits)
    yield from (row(name, cells) for name, cells in shown.items())
    if len(counts) > len(shown):
        yield f"  ... {len(counts)} classes in all"
    yield row("all", [census.splits.indices[split].size for split in splits])


def _sizes(checked: Sequence[Checked]) -> dict[str, list[float]]:
    """Least, median and most of each; empty where no header could be read."""
    seen = np.array([(one.width, one.height) for one in checked if one.width], dtype=np.float64).reshape(-1, 2)
    if not len(seen):
        return {}
    sides = {"width": seen[:, 0], "height": seen[:, 1], "aspect": seen[:, 0] / seen[:, 1]}
    return {name: [float(v) for v in (np.min(a), np.median(a), np.max(a))] for name, a in sides.items()}


def _size_lines(checked: Sequence[Checked]) -> list[str]:
    sizes = _sizes(checked)
    if not sizes:
        return []
    told = [f"{name} {low:g} to {high:g} (median {mid:g})" for name, (low, mid, high) in list(sizes.items())[:2]]
    low, mid, high = sizes["aspect"]
    told.append(f"width/height {low:.2f} to {high:.2f} (median {mid:.2f})")
    return ["sizes     " + ", ".join(told)]


def _counted(values: Iterable[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in Counter(value for value in values if value).most_common())


def _imbalance(census: Census) -> float | None:
    """Images of the largest class of train over those of the smallest."""
    train: Indices = census.splits.indices["train"]
    counts = np.bincount([census.source.items[index].label for index in train.tolist()])
    counts = counts[counts > 0]
    return float(counts.max() / counts.min()) if counts.size else None
