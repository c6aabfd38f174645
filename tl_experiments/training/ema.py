"""An exponential moving average of the weights, for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class Ema:
    """``average = decay * average + (1 - decay) * weights`` after each step (Polyak & Juditsky, 1992).

    After ``t`` steps the decay is no more than (1 + t) / (10 + t), so that a short run does not evaluate its start.
    Running statistics are averaged like the weights; counters are copied.

    Args:
        model: The average starts as a copy of its tensors.
        names: Which tensors of its state can change; the others are never copied.
        decay: In (0, 1).
    """

    def __init__(self, model: nn.Module, names: Iterable[str], decay: float) -> None:
        self.decay = decay
        self._shown = False  # whether the model holds the average, and ``average`` the weights
        state = model.state_dict()
        self.average = {name: state[name].detach().clone() for name in names}

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Call after each optimizer step; ``steps`` counts those that are done."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        state = model.state_dict()
        floats = [name for name, tensor in self.average.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in floats], [state[name] for name in floats], 1 - decay)
        for name in self.average.keys() - set(floats):
            self.average[name].copy_(state[name])

    @torch.no_grad()
    def show(self, model: nn.Module, shown: bool) -> None:
        """Exchange the model's tensors with the average's, or put them back; nothing where they are so already."""
        if shown == self._shown:
            return
        state = model.state_dict()
        for name, tensor in self.average.items():
            held = state[name].clone()
            state[name].copy_(tensor)
            tensor.copy_(held)
        self._shown = shown

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Take up an average that was saved, on the model's device."""
        for name, tensor in average.items():
            self.average[name].copy_(tensor)
