"""Optimizers and schedules, fresh in every phase."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tl_experiments.config.optimization import AdamW, OneCycle, Optimizer, Scheduler, Timm, WarmRestarts
from tl_experiments.config.timm_names import check_optimizer_name
from tl_experiments.errors import ConfigError, first_line
from tl_experiments.training.sharding import share


def build_optimizer(cfg: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer over ``groups``, each of which carries its own ``lr`` and ``weight_decay``.

    Where all parameters are on a GPU, torch's optimizers are the fused ones.

    Raises:
        ConfigError: timm has no such optimizer, or it refuses its arguments.
    """
    if isinstance(cfg, Timm):
        return _timm_optimizer(cfg, groups)
    # On a CPU it would round differently from what torch takes there by itself
    fused = True if all(parameter.is_cuda for group in groups for parameter in group["params"]) else None
    optimizer: torch.optim.Optimizer
    if isinstance(cfg, AdamW):
        optimizer = torch.optim.AdamW(groups, betas=(cfg.betas[0], cfg.betas[1]), fused=fused)
    else:
        optimizer = torch.optim.SGD(groups, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=fused)
    # A fused optimizer offers to unscale gradients itself, in which case Lightning refuses to clip them, in bf16 too
    optimizer._step_supports_amp_scaling = False
    return optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load ``state``, wherever it was taken: a run that goes on elsewhere is fused or not as the device asks."""
    own = {"fused": optimizer.defaults["fused"]} if "fused" in optimizer.defaults else {}
    groups = [{**group, **own} for group in state["param_groups"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = {
        number: {key: _like(value, parameters[number]) for key, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    optimizer.load_state_dict({**state, "param_groups": groups, "state": tensors})


def _like(value: Any, parameter: Tensor) -> Any:
    """What an optimizer keeps of a parameter is divided where that is; counts of steps are not."""
    return share(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def check_optimizer(cfg: Optimizer) -> None:
    """Make the optimizer of a single number, so that options it refuses are told before any training.

    Raises:
        ConfigError: It cannot be made.
    """
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    build_optimizer(cfg, [{"params": [parameter], "lr": 1.0, "weight_decay": 0.0}])


def _timm_optimizer(cfg: Timm, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

    check_optimizer_name(cfg.algorithm)
    try:
        # Each group has a rate of its own; without a rate here Adafactor and others would take one of theirs instead.
        optimizer = create_optimizer_v2(
            groups, cfg.algorithm, lr=groups[0]["lr"], weight_decay=cfg.weight_decay, filter_bias_and_bn=False,
            **cfg.kwargs,
        )  # fmt: skip
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        what = f"timm cannot make {cfg.algorithm} of these options ({first_line(error)})"
        raise ConfigError("optimizer", what, "see optimizer.kwargs") from None
    if getattr(optimizer, "is_second_order", False):
        raise ConfigError("optimizer.algorithm", f"{cfg.algorithm} needs second derivatives", "choose another one")
    return optimizer


def schedule(cfg: Scheduler, steps: int) -> Callable[[int], float]:
    """Multiplier of the learning rate at step 0, 1, ... of a phase of ``steps`` steps, in [0, 1].

    A pure function of the step, so that a resumed phase goes on where it was, and each group keeps its own rate.
    """
    if isinstance(cfg, OneCycle):
        return _one_cycle(cfg, steps)
    if isinstance(cfg, WarmRestarts):
        return _warm_restarts(cfg, steps)
    warmup = round(cfg.warmup_fraction * steps)

    def multiplier(step: int) -> float:
        """Linear from above 0, reaching 1 with the first step after the warm-up; then the cosine or a constant."""
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if cfg.name == "constant":
            return 1.0
        return _half_cosine(1.0, cfg.final_fraction, (step - warmup) / max(1, steps - warmup))

    return multiplier


def _half_cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at 1; a schedule without warm-up reaches 1 one step after its last."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _one_cycle(cfg: OneCycle, steps: int) -> Callable[[int], float]:
    """Peak and end fall on steps, as in torch's OneCycleLR; a phase of one step has the peak alone."""
    peak = cfg.warmup_fraction * steps - 1

    def multiplier(step: int) -> float:
        if step < peak:
            return _half_cosine(cfg.initial_fraction, 1.0, step / peak)
        return _half_cosine(1.0, cfg.final_fraction, (step - max(peak, 0)) / max(1.0, steps - 1 - max(peak, 0)))

    return multiplier


def _warm_restarts(cfg: WarmRestarts, steps: int) -> Callable[[int], float]:
    shares = [cfg.cycle_multiplier**cycle for cycle in range(cfg.cycles)]
    ends = [round(steps * sum(shares[: cycle + 1]) / sum(shares)) for cycle in range(cfg.cycles)]

    def multiplier(step: int) -> float:
        cycle = next((number for number, end in enumerate(ends) if step < end), cfg.cycles - 1)
        start = ends[cycle - 1] if cycle else 0
        return _half_cosine(1.0, cfg.final_fraction, (step - start) / max(1, ends[cycle] - start))

    return multiplier
