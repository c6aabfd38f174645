"""Strategies that train the head and one kind of parameter in every block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from tl_experiments.errors import ConfigError
from tl_experiments.types import Block, ModelLayout, NormStats, Phase


@dataclass(frozen=True, kw_only=True)
class Bitfit:
    """BitFit: train the head and the biases of the backbone, those of its norms included (Ben Zaken et al., 2022).

    Args:
        norm_stats: Whether BatchNorm statistics beside the biases are updated.
    """

    name: Literal["bitfit"] = "bitfit"
    norm_stats: NormStats = "frozen"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        trained = _of_each_block(layout, lambda block: {name for name in block.parameters if _is_bias(name)})
        if not trained:
            raise _nothing(self.name, "no biases", "norm_only")
        return (Phase(0.0, dict.fromkeys([*trained, *layout.head.parameters], 1.0), self.norm_stats),)


@dataclass(frozen=True, kw_only=True)
class NormOnly:
    """Train the head and the scales and shifts of the norms (Frankle et al., 2021, for BatchNorm).

    Args:
        norm_stats: Whether the statistics of BatchNorms are updated; they are part of the norm.
    """

    name: Literal["norm_only"] = "norm_only"
    norm_stats: NormStats = "update"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        trained = _of_each_block(layout, lambda block: block.norms)
        if not trained:
            raise _nothing(self.name, "no norms with parameters", "bitfit")
        return (Phase(0.0, dict.fromkeys([*trained, *layout.head.parameters], 1.0), self.norm_stats),)


def _of_each_block(layout: ModelLayout, kind: Callable[[Block], set[str] | frozenset[str]]) -> list[str]:
    """The backbone's parameters of one kind, in the order of the layout."""
    return [name for block in layout.blocks for name in block.parameters if name in kind(block)]


def _is_bias(name: str) -> bool:
    """Some attention layers keep the biases of query and value beside the shared weight; position tables are none."""
    return name.rpartition(".")[2] in ("bias", "q_bias", "k_bias", "v_bias", "qkv_bias")


def _nothing(strategy: str, lacks: str, instead: str) -> ConfigError:
    return ConfigError(
        "freeze_strategy", f"{strategy}, but the backbone has {lacks}", f"freeze_strategy={instead} or last_n_blocks"
    )
