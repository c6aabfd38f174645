"""L-BFGS for many problems at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

# Parameters (p, size) of the problems (p,) -> values (p,), gradients (p, size), and how far each is from done (p,).
Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

# A step (p, size), the change of the gradient along it (p, size) and 1 over their product (p,).
Pair = tuple[Tensor, Tensor, Tensor]

_HISTORY = 5
_SUFFICIENT = 1e-4  # of the decrease that the slope promises (Armijo)
_PATIENCE = 8  # rounds without a gain beyond rounding, after which the dtype has no better point to offer


def minimise(evaluate: Evaluate, start: Tensor, tolerance: float, max_iterations: int) -> tuple[Tensor, Tensor]:
    """Minimise P smooth functions, each with its own steps (Nocedal & Wright, 2006, algorithm 7.5).

    Each round evaluates one trial point of every problem that is not yet done: those that gain go on to their next
    direction, the others halve their step.

    Args:
        evaluate: Called with the parameters of the problems still running, and their positions.
        start: ``(P, size)``.
        tolerance: A problem is done once its distance, the last that ``evaluate`` gives, is at most this, or when its
            values no longer tell one point from the next.
        max_iterations: Rounds.

    Returns:
        The minima ``(P, size)``, and which were found, bool ``(P,)``; the others are as near as they came.
    """
    found = start.clone()
    converged = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    running = torch.arange(len(start), device=start.device)
    point = start
    value, gradient, distance = evaluate(point, running)
    direction, step, scale = -gradient, torch.ones_like(value), torch.ones_like(value)
    idle = torch.zeros_like(running)
    history: deque[Pair] = deque(maxlen=_HISTORY)
    rounding = 4 * torch.finfo(value.dtype).eps
    for _ in range(max_iterations):
        there = (distance <= tolerance) | (idle >= _PATIENCE)
        over = there | ~torch.isfinite(value)
        if over.any():
            found[running[over]], converged[running[over]] = point[over], there[over]
            left = (~over).nonzero().squeeze(1)
            if not len(left):
                return found, converged
            state = (running, point, value, gradient, distance, direction, step, scale, idle)
            running, point, value, gradient, distance, direction, step, scale, idle = (each[left] for each in state)
            history = deque(((s[left], y[left], rho[left]) for s, y, rho in history), maxlen=_HISTORY)
        trial = torch.addcmul(point, direction, step[:, None])
        trial_value, trial_gradient, trial_distance = evaluate(trial, running)
        promised = _SUFFICIENT * step * _dot(gradient, direction)
        gains = trial_value <= value + promised + rounding * value.abs()
        idle = torch.where(trial_value < value - rounding * value.abs(), 0, idle + 1)
        pair = _pair(trial - point, trial_gradient - gradient, gains)
        history.append(pair)
        curvature = _dot(pair[0], pair[1])
        scale = torch.where(curvature > 0, curvature / _dot(pair[1], pair[1]), scale)
        value, distance = torch.where(gains, trial_value, value), torch.where(gains, trial_distance, distance)
        point, gradient = (
            torch.where(gains[:, None], new, old) for new, old in ((trial, point), (trial_gradient, gradient))
        )
        direction = torch.where(gains[:, None], _direction(gradient, history, scale), direction)
        step = torch.where(gains, 1.0, step / 2)
    found[running], converged[running] = point, distance <= tolerance
    return found, converged


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return torch.linalg.vecdot(one, other)


def _pair(moved: Tensor, change: Tensor, gains: Tensor) -> Pair:
    """What a step has told of the curvature; zeros, which do nothing, where none."""
    curvature = _dot(moved, change)
    usable = gains & (curvature > 1e-10 * _dot(change, change))
    moved, change = (torch.where(usable[:, None], each, 0.0) for each in (moved, change))
    return moved, change, torch.where(usable, 1 / curvature, 0.0)


def _direction(gradient: Tensor, history: deque[Pair], scale: Tensor) -> Tensor:
    """Minus the product of the inverse Hessian's estimate and the gradient, by the two loops of L-BFGS."""
    direction = -gradient
    shares = []
    for moved, change, weight in reversed(history):
        shares.append(weight * _dot(moved, direction))
        direction.addcmul_(change, shares[-1][:, None], value=-1)
    direction.mul_(scale[:, None])
    for (moved, change, weight), share in zip(history, reversed(shares), strict=True):
        direction.addcmul_(moved, (share - weight * _dot(change, direction))[:, None])
    return direction
