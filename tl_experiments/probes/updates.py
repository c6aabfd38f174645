"""One optimizer step of many heads, each with a rate and a decay of its own; equal to torch's optimizers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov & Hutter, 2019) with ``eps`` 1e-8.

    Args:
        betas: Of the running means of the gradient and of its square, in [0, 1).
    """

    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent.

    Args:
        momentum: In [0, 1).
        nesterov: Whether the momentum looks ahead.
    """

    momentum: float = 0.0
    nesterov: bool = False


class Heads:
    """A weight ``(K, C, D)`` and a bias ``(K, C)`` that lie in one block of memory, so that one call serves both."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.flat = torch.cat([weight.detach().flatten(), bias.detach().flatten()])
        self.weight = self.flat[: weight.numel()].view(weight.shape)
        self.bias = self.flat[weight.numel() :].view(bias.shape)

    def like(self) -> Heads:
        """Zeros of the same shape."""
        return Heads(torch.zeros_like(self.weight), torch.zeros_like(self.bias))


class AdamWUpdate:
    """Torch's fused kernel on a parameter that is the step itself.

    At rate 1 and decay 1 the kernel first takes the parameter away and leaves minus the step of a rate of 1. Each
    head's rate and decay are applied after that, which the kernel, with one rate for all, cannot do.
    """

    def __init__(self, options: AdamW, heads: Heads) -> None:
        self.step = heads.like()
        self.optimizer = torch.optim.AdamW(
            [self.step.flat], lr=1.0, weight_decay=1.0, betas=options.betas, eps=1e-8, fused=True
        )

    def apply(self, heads: Heads, gradient: Heads, lr: Tensor, weight_decay: Tensor | None) -> None:
        """Move ``heads``; ``lr`` and ``weight_decay`` are ``(K,)``, decoupled, on the weight alone."""
        self.step.flat.grad = gradient.flat
        self.optimizer.step()
        if weight_decay is not None:
            heads.weight.mul_((1 - lr * weight_decay).view(-1, 1, 1))
        heads.weight.addcmul_(self.step.weight, lr.view(-1, 1, 1))
        heads.bias.addcmul_(self.step.bias, lr.view(-1, 1))

    def state(self) -> dict[str, Tensor]:
        """Running means and the number of steps; empty before the first."""
        return self.optimizer.state[self.step.flat] if self.optimizer.state else {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        self.optimizer.state.clear()
        if state:
            self.optimizer.state[self.step.flat] = {
                key: value.to(self.step.flat.device, copy=True) for key, value in state.items()
            }


class SGDUpdate:
    """As torch.optim.SGD without dampening."""

    def __init__(self, options: SGD, heads: Heads) -> None:
        self.options = options
        self.momentum = heads.like() if options.momentum > 0 else None

    def apply(self, heads: Heads, gradient: Heads, lr: Tensor, weight_decay: Tensor | None) -> None:
        """Move ``heads``; ``lr`` and ``weight_decay`` are ``(K,)``, the decay part of the weight's gradient."""
        if weight_decay is not None:
            gradient.weight.addcmul_(heads.weight, weight_decay.view(-1, 1, 1))
        step = gradient
        if self.momentum is not None:
            self.momentum.flat.mul_(self.options.momentum).add_(gradient.flat)
            step = self.momentum
            if self.options.nesterov:
                gradient.flat.add_(self.momentum.flat, alpha=self.options.momentum)
                step = gradient
        heads.weight.addcmul_(step.weight, lr.view(-1, 1, 1), value=-1)
        heads.bias.addcmul_(step.bias, lr.view(-1, 1), value=-1)

    def state(self) -> dict[str, Tensor]:
        """The momentum; empty without."""
        return {} if self.momentum is None else {"momentum": self.momentum.flat}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        if self.momentum is not None:
            self.momentum.flat.copy_(state["momentum"])
