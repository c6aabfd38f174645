"""Randomness inside a training step, such as dropout."""

from __future__ import annotations

import torch

from tl_experiments.seeds import derive


def seed_step(seed: int, step: int, device: torch.device, rank: int = 0) -> None:
    """Make what torch draws in optimizer step ``step`` a function of the run's seed and the step.

    A run that goes on from any step then draws what it would have drawn, and so does a step that is computed again.
    Processes that train together draw each for itself.
    """
    value = derive(seed, "training", step, *([rank] if rank else []))
    torch.default_generator.manual_seed(value)  # torch.manual_seed takes 60 us, to reach devices that are not used
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
