"""Blocks in depth order from a model's module tree, for models whose blocks timm does not name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import nn

# Names of the lists whose elements are residual blocks or transformer layers, over all of timm.
HOLDS_BLOCKS = re.compile(r"(^|_)blocks(_|\d|$)")
_STEM = re.compile(r"^(stem|patch_embed)")
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class _Piece:
    """Parameters that stay together.

    Args:
        names: Of the parameters.
        is_block: False for what stands between blocks.
        of: The list that the block is an element of, where that is, or lies in, a list named blocks.
    """

    names: list[str]
    is_block: bool = False
    of: str | None = None


def tree_blocks(net: nn.Module) -> list[list[str]]:
    """Parameter names in blocks, in the order in which the model registers its modules.

    Lists of modules, and modules that hold a list named ``blocks``, are opened down to their elements. An element that
    is itself made of modules is a block. What stands between blocks (a downsampling, a norm) belongs to the block after
    it, as in timm's own groups; what stands before the first block is the stem, what stands after the last the tail.
    """
    pieces = _pieces(net)
    first = next((i for i, piece in enumerate(pieces) if piece.is_block), len(pieces))
    blocks, loose = [[name for piece in pieces[:first] for name in piece.names]], []
    for piece in pieces[first:]:
        loose += piece.names
        if piece.is_block:
            blocks.append(loose)
            loose = []
    return [block for block in (*blocks, loose) if block]


def cuts_between_blocks(net: nn.Module, groups: Iterable[Iterable[str]]) -> bool:
    """Whether each element of the lists named blocks has a group of its own, in the order of its list.

    timm's groups do, except where they are whole stages of layers or mix layers of different depth.
    """
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    found = [(group_of[piece.names[0]], piece.of) for piece in _pieces(net) if piece.of is not None]
    numbers = [number for number, _ in found]
    return len(set(found)) == len(found) and numbers == sorted(numbers)


def _pieces(net: nn.Module) -> list[_Piece]:
    """The tree in pieces; of a parameter that two modules share, the first counts."""
    left = {name for name, _ in net.named_parameters()}
    found = (replace(piece, names=[n for n in piece.names if n in left]) for piece in _open(net, "", opened=True))
    return [piece for piece in found if piece.names]


def _open(module: nn.Module, prefix: str, opened: bool, in_blocks: bool = False) -> Iterator[_Piece]:
    """The pieces below ``prefix``.

    Args:
        opened: Whether all children may be opened; otherwise those that are lists named blocks.
        in_blocks: Whether a list named blocks is around them.
    """
    if own := [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)]:
        yield _Piece(own)
    for name, child in module.named_children():
        is_list, named = isinstance(child, _LISTS), bool(HOLDS_BLOCKS.search(name))
        inside = in_blocks or (is_list and named)
        if _holds_blocks(child) and (is_list or not inside) and (opened or named) and not _STEM.match(name):
            yield from _open(child, f"{prefix}{name}.", is_list, inside)
        else:
            names = [f"{prefix}{name}.{parameter}" for parameter, _ in child.named_parameters()]
            is_block = isinstance(module, _LISTS) and _is_composite(child)
            yield _Piece(names, is_block, prefix if is_block and in_blocks else None)


def _holds_blocks(module: nn.Module) -> bool:
    """Whether to look for blocks inside: a list with composite elements, or a module with a list named blocks."""
    if isinstance(module, _LISTS):
        return any(_is_composite(child) or _holds_blocks(child) for child in module.children())
    return any(isinstance(child, _LISTS) and HOLDS_BLOCKS.search(name) for name, child in module.named_children())


def _is_composite(module: nn.Module) -> bool:
    """Whether several layers with parameters make it up."""
    return sum(any(True for _ in layer.parameters(recurse=False)) for layer in module.modules()) > 1
