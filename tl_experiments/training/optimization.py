"""Optimizers and schedules, fresh in every phase."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tl_experiments.config.optimization import AdamW, Optimizer, Scheduler


def build_optimizer(cfg: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer over ``groups``, each of which carries its own ``lr`` and ``weight_decay``."""
    if isinstance(cfg, AdamW):
        return torch.optim.AdamW(groups, betas=(cfg.betas[0], cfg.betas[1]))
    return torch.optim.SGD(groups, momentum=cfg.momentum, nesterov=cfg.nesterov)


def schedule(cfg: Scheduler, steps: int) -> Callable[[int], float]:
    """Multiplier of the learning rate at step 0, 1, ... of a phase of ``steps`` steps, in [0, 1].

    Warm-up rises linearly from above 0 and reaches 1 with the first step after it. Then ``constant`` stays, and
    ``cosine`` falls to ``final_fraction``, which it would reach one step after the last (Loshchilov & Hutter, 2017,
    without restarts).
    """
    warmup = round(cfg.warmup_fraction * steps)

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if cfg.name == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return cfg.final_fraction + (1 - cfg.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return multiplier
