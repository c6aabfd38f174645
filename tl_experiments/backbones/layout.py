"""A timm model's blocks in depth order, each parameter in exactly one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from timm.models import group_parameters
from torch import nn

from tl_experiments.backbones.timm_backbone import TimmBackbone
from tl_experiments.errors import ConfigError
from tl_experiments.types import Block, ModelLayout

# A last group this much smaller than the one before it is a tail, such as a final norm: alone it would make
# last_n_blocks(1) train next to nothing.
_TAIL_SHARE = 0.1


def layout_of(backbone: TimmBackbone, head: nn.Module) -> ModelLayout:
    """The layout of a model whose parameters are named ``backbone.net.*`` and ``head.*``.

    Blocks are timm's own groups (``group_matcher``), the finest ones: a residual block, a transformer layer.

    Raises:
        ConfigError: timm gives no groups for this model, or they do not cover every parameter.
    """
    net = backbone.net
    if not hasattr(net, "group_matcher"):
        raise ConfigError("backbone.name", f"timm names no blocks for {type(net).__name__}", "choose another backbone")
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    groups = group_parameters(net, net.group_matcher(coarse=False))  # type: ignore[operator]
    ordered = [list(groups[key]) for key in sorted(groups)]
    covered = [name for group in ordered for name in group]
    if sorted(covered) != sorted(sizes):
        raise ConfigError(
            "backbone.name", f"timm's blocks of {type(net).__name__} miss parameters", "choose another backbone"
        )
    if len(ordered) > 1 and _size(ordered[-1], sizes) < _TAIL_SHARE * _size(ordered[-2], sizes):
        ordered[-2:] = [[*ordered[-2], *ordered[-1]]]
    names = _names(ordered)
    blocks = tuple(
        Block(name, {f"backbone.net.{parameter}": sizes[parameter] for parameter in group})
        for name, group in zip(names, ordered, strict=True)
    )
    head_block = Block("head", {f"head.{name}": parameter.numel() for name, parameter in head.named_parameters()})
    return ModelLayout(blocks, head_block)


def _size(group: Iterable[str], sizes: dict[str, int]) -> int:
    return sum(sizes[name] for name in group)


def _names(groups: Sequence[Sequence[str]]) -> list[str]:
    """A block is called after the module that holds all its parameters; the first, if there is none, ``stem``."""
    found: list[str] = []
    for index, group in enumerate(groups):
        modules = [parameter.split(".")[:-1] for parameter in group]
        if index > 0:  # a norm that was merged into a block does not change its name
            modules = [module for module in modules if module[:1] == modules[0][:1]]
        name = _common(modules) or ("stem" if index == 0 else f"block{index}")
        found.append(name if name not in found else f"{name}#{index}")
    return found


def _common(paths: Sequence[Sequence[str]]) -> str:
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in shared)
