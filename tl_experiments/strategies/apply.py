"""The one place that applies a phase to a model: gradients, modes, parameter groups."""

from __future__ import annotations

from typing import Any

from torch import nn

from tl_experiments.types import ModelLayout, Phase


def set_requires_grad(model: nn.Module, phase: Phase) -> None:
    """Exactly the parameters that the phase names get gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in phase.lr_multiplier)
        parameter.grad = None


def modules_held_in_eval(model: nn.Module, layout: ModelLayout, phase: Phase) -> list[nn.Module]:
    """The modules that must stay in eval mode whatever mode the model is put in.

    Frozen means frozen: a block that trains nothing neither updates statistics nor drops units. In a block that trains,
    modules with running statistics follow ``phase.norm_stats``, and all others follow the model.
    """
    trained = layout.trained_blocks(phase)
    return [
        module
        for _, module, blocks in blocks_of_each_module(model, layout)
        if not blocks & trained or (phase.norm_stats == "frozen" and _has_running_statistics(module))
    ]


def blocks_of_each_module(model: nn.Module, layout: ModelLayout) -> list[tuple[str, nn.Module, set[str]]]:
    """Name and module of each, containers too (their code may ask ``self.training``), with the blocks it works in.

    A module with parameters works in their blocks. One without (dropout, pooling) works in the block of the innermost
    enclosing module whose parameters all lie in one block; failing that, in the block of the last parameter
    registered before it, which in timm's models is the layer that feeds it.
    """
    names = {name: block.name for block in layout.all_blocks for name in block.parameters}
    # by the parameter itself: a module that stands in two places has a second name, which the layout does not know
    block_of = {parameter: names[name] for name, parameter in model.named_parameters()}
    found: list[tuple[str, nn.Module, set[str]]] = []
    last: set[str] = set()

    def visit(module: nn.Module, prefix: str, enclosing: set[str]) -> None:
        nonlocal last
        own = {block_of[parameter] for parameter in module.parameters()}
        found.append((prefix.rstrip("."), module, own or enclosing or last))
        for parameter in module.parameters(recurse=False):
            last = {block_of[parameter]}
        inside = own if len(own) == 1 else (set() if own else enclosing)
        for name, child in module.named_children():
            visit(child, f"{prefix}{name}.", inside)

    visit(model, "", set())
    return found


def _has_running_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None


def param_groups(model: nn.Module, phase: Phase, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups, one per (learning rate, weight decay), each with its own ``lr`` written out.

    Args:
        model: The model; parameters that ``phase`` does not name are left out.
        phase: Names and multipliers.
        lr: Base learning rate.
        weight_decay: For tensors of two dimensions or more; norms and biases are not decayed.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in phase.lr_multiplier:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((lr * phase.lr_multiplier[name], decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
