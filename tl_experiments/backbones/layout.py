"""A timm model's blocks in depth order, each parameter in exactly one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from timm.models import group_parameters
from torch import nn

from tl_experiments.backbones.norms import norm_parameters
from tl_experiments.backbones.timm_backbone import TimmBackbone
from tl_experiments.backbones.tree import HOLDS_BLOCKS, cuts_between_blocks, tree_blocks
from tl_experiments.types import Block, ModelLayout

# A last group this much smaller than the one before it is a tail, such as a final norm: alone it would make
# last_n_blocks(1) train next to nothing.
_TAIL_SHARE = 0.1


def layout_of(backbone: TimmBackbone, head: nn.Module) -> ModelLayout:
    """The layout of a model whose parameters are named ``backbone.net.*`` and ``head.*``.

    Blocks are timm's own groups (``group_matcher``), the finest ones: a residual block, a transformer layer. Where timm
    names none, or where its groups hold several layers or are out of depth order, the blocks are those of the module
    tree, and a note says so.
    """
    net = backbone.net
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    norms = norm_parameters(net)
    groups, reason = _timm_groups(net)
    if reason:
        groups = tree_blocks(net)
    assert sorted(itertools.chain(*groups)) == sorted(sizes)
    while len(groups) > 1 and _size(groups[-1], sizes) < _TAIL_SHARE * _size(groups[-2], sizes):
        groups[-2:] = [[*groups[-2], *groups[-1]]]
    blocks = tuple(
        Block(
            name,
            {f"backbone.net.{parameter}": sizes[parameter] for parameter in group},
            frozenset(f"backbone.net.{parameter}" for parameter in group if parameter in norms),
        )
        for name, group in zip(_names(groups), groups, strict=True)
    )
    new = {f"head.{name}": parameter.numel() for name, parameter in head.named_parameters()}
    head_block = Block("head", new, frozenset(f"head.{name}" for name in norm_parameters(head)))
    notes = (f"{reason}: its blocks are taken from its module tree (print_layout=true shows them).",) if reason else ()
    return ModelLayout(blocks, head_block, notes)


def _timm_groups(net: nn.Module) -> tuple[list[list[str]], str]:
    """timm's finest groups in depth order, and why they cannot be used, or an empty text."""
    name = type(net).__name__
    if not hasattr(net, "group_matcher"):
        return [], f"timm names no blocks for {name}"
    found = group_parameters(net, net.group_matcher(coarse=False))  # type: ignore[operator]
    groups = [list(found[key]) for key in sorted(found)]
    if not cuts_between_blocks(net, groups):
        return [], f"timm's groups of {name} hold several layers or are out of depth order"
    return groups, ""


def _size(group: Iterable[str], sizes: dict[str, int]) -> int:
    return sum(sizes[name] for name in group)


def _names(groups: Sequence[Sequence[str]]) -> list[str]:
    """A block is called after the module that holds its parameters; the first, if others lie there too, ``stem``."""
    found: list[str] = []
    for index, group in enumerate(groups):
        name = _name(group, is_first=index == 0) or f"block{index}"
        if index == 0 and (name == "block0" or any(p.startswith(f"{name}.") for g in groups[1:] for p in g)):
            name = "stem"
        found.append(name if name not in ("head", *found) else f"{name}#{index}")  # the head is the new one
    return found


def _name(group: Sequence[str], is_first: bool) -> str:
    modules = [parameter.split(".")[:-1] for parameter in group]
    if not is_first:  # a downsampling before the block, or a norm after it, does not change its name
        modules = [module for module in modules if any(map(HOLDS_BLOCKS.search, module))] or modules
        modules = [module for module in modules if module[:1] == modules[0][:1]]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))
    name = ".".join(parts[0] for parts in shared)
    # Not deeper than the element of a list: blocks.3, though all of its parameters lie in blocks.3.main.
    return re.sub(r"(\.\d+)(\.[^.\d][^.]*)+$", r"\1", name)
