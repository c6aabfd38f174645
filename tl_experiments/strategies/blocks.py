"""Strategies that train whole blocks from the first step on, all at one learning rate."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from tl_experiments.errors import ConfigError
from tl_experiments.types import Block, ModelLayout, NormStats, Phase

_THIRDS = ("first", "middle", "last")


def one_phase(blocks: Iterable[Block], norm_stats: NormStats) -> tuple[Phase, ...]:
    """A single phase that trains ``blocks`` at the base learning rate."""
    return (Phase(0.0, {name: 1.0 for block in blocks for name in block.parameters}, norm_stats),)


@dataclass(frozen=True, kw_only=True)
class FeatureExtraction:
    """Linear probing: train the head on the features of a frozen backbone."""

    name: Literal["feature_extraction"] = "feature_extraction"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        return one_phase((layout.head,), "frozen")


@dataclass(frozen=True, kw_only=True)
class LastNBlocks:
    """Partial fine-tuning: train the head and the ``n`` deepest blocks at one learning rate (Yosinski et al., 2014).

    Args:
        n: Blocks to train, 0 (a linear probe) to all of them; ``print_layout=true`` lists them.
        norm_stats: Whether BatchNorm statistics in the trained blocks are updated.
    """

    name: Literal["last_n_blocks"] = "last_n_blocks"
    n: int
    norm_stats: NormStats = "update"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ConfigError("n", f"got {self.n}, expected 0 or more", "give the number of deepest blocks to train")

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        frozen = len(layout.blocks) - self.n  # not blocks[-n:], which trains everything at n=0
        if frozen < 0:
            raise ConfigError(
                "freeze_strategy.n",
                f"got {self.n}, expected 0 to {len(layout.blocks)}, the backbone's blocks",
                "print_layout=true lists the blocks",
            )
        return one_phase((*layout.blocks[frozen:], layout.head), self.norm_stats)


@dataclass(frozen=True, kw_only=True)
class Surgical:
    """Surgical fine-tuning: train the head and chosen blocks, wherever they stand (Lee et al., 2023).

    Args:
        blocks: Which blocks: ``first``, ``middle`` or ``last`` (thirds of the backbone's blocks in depth order), names
            of blocks or of stages (``layer1`` is ``layer1.0``, ``layer1.1``, ...), or numbers from 0, the stem.
        norm_stats: Whether BatchNorm statistics in the trained blocks are updated.
    """

    name: Literal["surgical"] = "surgical"
    blocks: tuple[str, ...]
    norm_stats: NormStats = "update"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ConfigError("blocks", "got [], expected at least one block", "freeze_strategy=feature_extraction")

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        chosen = {block.name for entry in self.blocks for block in _chosen(entry, layout.blocks)}
        return one_phase((*(block for block in layout.blocks if block.name in chosen), layout.head), self.norm_stats)


def _chosen(entry: str, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The blocks that one entry of ``Surgical.blocks`` means."""
    found = tuple(block for block in blocks if block.name == entry)
    found = found or tuple(block for block in blocks if block.name.startswith(f"{entry}."))
    if entry in _THIRDS:
        third = _THIRDS.index(entry)
        found = blocks[round(third * len(blocks) / 3) : round((third + 1) * len(blocks) / 3)]
    elif not found and entry.isdecimal():
        found = blocks[int(entry) : int(entry) + 1]
    if not found:
        known = [*_THIRDS, *(block.name for block in blocks)]
        near = difflib.get_close_matches(entry, known, n=1)
        raise ConfigError(
            "freeze_strategy.blocks",
            f"got {entry}, expected first, middle, last, a block's name or a number from 0 to {len(blocks) - 1}",
            f"did you mean {near[0]}?" if near else "print_layout=true lists the blocks",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Full:
    """Full fine-tuning: train every parameter, starting from the given weights, at one learning rate.

    Args:
        norm_stats: Whether BatchNorm statistics are updated.
    """

    name: Literal["full"] = "full"
    norm_stats: NormStats = "update"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        return one_phase(layout.all_blocks, self.norm_stats)


@dataclass(frozen=True, kw_only=True)
class FromScratch:
    """The control arm of transfer: the same as ``full``, after re-initialising the backbone."""

    name: Literal["from_scratch"] = "from_scratch"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = True

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        return one_phase(layout.all_blocks, "update")
