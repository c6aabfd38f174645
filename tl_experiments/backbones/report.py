"""What became of each tensor of a weights file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Counts batches for BatchNorm's cumulative average; older files lack it and nothing that we run reads it.
COUNTER = re.compile(r"(^|\.)num_batches_tracked$")
_EXAMPLES = 10


@dataclass(frozen=True)
class Names:
    """How many tensors, and the first of their names."""

    count: int = 0
    first: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        every = list(names)
        return cls(len(every), tuple(every[:_EXAMPLES]))


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """Where weights came from, and what became of each tensor.

    Args:
        source: ``random``, ``owner/repo/file`` on the hub, a URL, or the file's path.
        sha256: Of the file; None for random weights.
        repo: The hub's repository.
        commit: The repository's commit.
        in_file: Tensors of the file; timm's filter of the family may split, merge or leave some of them out.
        total: Tensors of the backbone.
        matched: Those that the source filled.
        missing: Those that it did not: counters that nothing reads, and norms that timm puts behind weights which have
            none, still at a scale of 1 and a shift of 0.
        unexpected: Tensors of the source that the backbone has no place for, all of them beside the backbone: more of
            its own classifier, or an auxiliary head.
        shape_mismatched: Always none after loading; counted in the error that refuses them.
        classifier_dropped: Tensors of the source's own classifier, which a new head replaces.
        resized: Tensor -> how it was interpolated to this input size or patch size, such as ``14x14 to 8x8``.
        adapted: Input convolution -> channels, such as ``3 to 1``.
        own_loader: Whether timm read the file with a loader of the model's own; ``matched`` then are the tensors
            that it changed.
        lineage: The own runs behind the weights, from the origin to the latest; see ``locate.lineage_of``.
        pretraining_s: Seconds of own pretraining that made the file, all links of the lineage together.
        image_size: Side in pixels of the images that the weights were trained on; None where it is not known.
    """

    source: str
    sha256: str | None = None
    repo: str | None = None
    commit: str | None = None
    in_file: int = 0
    total: int = 0
    matched: int = 0
    missing: Names = Names()
    unexpected: Names = Names()
    shape_mismatched: Names = Names()
    classifier_dropped: int = 0
    resized: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)
    own_loader: bool = False
    lineage: tuple[Mapping[str, Any], ...] = ()
    pretraining_s: float = 0.0
    image_size: int | None = None

    def adaptations(self) -> tuple[str, ...]:
        """What was changed to fit, a sentence each."""
        sentences = []
        if self.resized:
            name, how = next(iter(self.resized.items()))
            more = f" and {len(self.resized) - 1} more" if len(self.resized) > 1 else ""
            sentences.append(f"The weights were resized to this input: {name} from {how}{more}.")
        for name, channels in self.adapted.items():
            sentences.append(f"The first convolution was adapted from {channels} channels ({name}).")
        if new := [name for name in self.missing.first if not (COUNTER.search(name) or self.own_loader)]:
            sentences.append(f"The weights have no {' and '.join(new)}: timm adds a norm that starts at 1 and 0.")
        if self.own_loader:
            sentences.append(
                f"timm read {self.source} with a loader of its own: tensors that changed are counted as matched."
            )
        return tuple(sentences)
