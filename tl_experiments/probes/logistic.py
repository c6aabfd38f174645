"""Softmax regression with an L2 penalty, for a whole path of penalties."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tl_experiments.probes.cross_entropy import CrossEntropy
from tl_experiments.probes.lbfgs import minimise

logger = logging.getLogger(__name__)


@torch.no_grad()
def logistic_path(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    penalties: Sequence[float],
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> tuple[Tensor, Tensor]:
    """Heads that minimise mean cross-entropy + ``penalty / 2 * |W|^2``; the bias is not penalised.

    L-BFGS runs on many penalties at once, along the principal axes of the features and in steps that fit each axis'
    variance, so that few rounds are enough. Of a dense path a few penalties are solved first, and the others start
    between their neighbours. A line is logged where penalties stop short of the tolerance.

    Args:
        features: ``(n, D)``, finite, best standardised.
        labels: int64 ``(n,)``.
        n_classes: C.
        penalties: P numbers above 0.
        tolerance: How far above its minimum an objective may end, as a share of it. The gradient bounds that: the
            penalty is the least curvature of the weights, so that it is ``|gradient|^2 / (2 * penalty)``. A bound on
            the gradient alone would stop weak penalties far too early.
        max_iterations: Evaluations of one head, at most.

    Returns:
        Weights ``(P, C, D)`` and biases ``(P, C)``, of the features' dtype.
    """
    objective = _Objective(features, labels, n_classes)
    path = sorted(set(penalties))
    solved = features.new_zeros(len(path), n_classes * objective.dim)
    done: list[int] = []
    short = 0
    for wave in _waves(len(path)):
        start = torch.stack([_between([math.log(penalty) for penalty in path], solved, done, at) for at in wave])
        penalty = features.new_tensor([path[at] for at in wave])
        solved[wave], converged = objective.minimise(start, penalty, tolerance, max_iterations)
        short += int((~converged).sum())
        done += wave
    if short:
        what = "%d of %d penalties stopped short of a relative tolerance of %g"
        logger.warning(f"logistic: {what}", short, len(path), tolerance)
    return objective.heads(solved[[path.index(penalty) for penalty in penalties]])


def _waves(count: int) -> Iterator[list[int]]:
    """Positions on a path, each wave between those before it; the first, of four or more, has no neighbours to ask."""
    stride = 1 << max(0, (count // 4).bit_length() - 1)
    wave = sorted({*range(0, count, stride), count - 1})
    seen: set[int] = set()
    while wave:
        yield wave
        seen.update(wave)
        stride = max(1, stride // 2)
        wave = [at for at in range(0, count, stride) if at not in seen]


def _between(logs: Sequence[float], solved: Tensor, done: Sequence[int], at: int) -> Tensor:
    """The polynomial in the penalty's logarithm through the four nearest solutions; zeros where there are none."""
    nearest = sorted(done, key=lambda other: abs(logs[other] - logs[at]))[:4]
    start = torch.zeros_like(solved[at])
    for one in nearest:
        others = [logs[other] for other in nearest if other != one]
        start.add_(solved[one], alpha=math.prod((logs[at] - other) / (logs[one] - other) for other in others))
    return start


class _Objective:
    """The problem along the principal axes of centred features, the bias being one more of them."""

    def __init__(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        self.mean = features.mean(0)
        centred = features - self.mean
        n = len(features)
        variances, axes = torch.linalg.eigh(centred.T @ centred / n)
        used = variances > variances[-1].clamp(min=0) * torch.finfo(features.dtype).eps  # the rest is of rounding
        self.axes = axes[:, used]
        self.variances = torch.cat([variances[used], variances.new_ones(1)])
        self.inputs = torch.cat([centred @ self.axes, centred.new_ones(n, 1)], dim=1)
        self.labels, self.n_classes, self.dim = labels, n_classes, len(self.variances)
        self.cross_entropy = CrossEntropy(None, None)

    def minimise(self, start: Tensor, penalty: Tensor, tolerance: float, max_iterations: int) -> tuple[Tensor, Tensor]:
        """Solutions ``(P, C * dim)`` for penalties ``(P,)``, and which of them converged."""
        strength = penalty[:, None, None] * (torch.arange(self.dim, device=penalty.device) < self.dim - 1)
        # The cross-entropy's curvature along an axis is its variance / C while all classes are equally likely, and less
        # the surer the head is of its images, which a weak penalty lets it be: about as the root of the penalty.
        curvature = penalty.sqrt().clamp(max=1.0) / self.n_classes
        steps = (curvature[:, None, None] * self.variances + strength).rsqrt()  # (P, 1, dim)
        least = penalty[:, None, None].expand_as(steps).clone()
        least[..., -1] = torch.minimum(curvature, penalty)[:, None]
        shape = (-1, self.n_classes, self.dim)

        def evaluate(scaled: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            weight = scaled.view(shape) * steps[which]
            log_p = torch.mm(weight.view(-1, self.dim), self.inputs.T).view(len(which), self.n_classes, -1)
            log_p = log_p.log_softmax(1)
            pull = strength[which] * weight
            value = self.cross_entropy.loss(log_p, self.labels) + (pull * weight).sum((1, 2)) / 2
            slope = self.cross_entropy.gradient_(log_p, self.labels)
            gradient = torch.addmm(pull.view(-1, self.dim), slope.view(-1, len(self.inputs)), self.inputs)
            gradient = gradient.view(shape)
            # Where a function is at least so curved, it lies at most gradient^2 / (2 curvature) above its minimum.
            excess = (gradient.square() / (2 * least[which])).sum((1, 2))
            return value, (gradient * steps[which]).view_as(scaled), excess / value

        scaled, converged = minimise(evaluate, (start.view(shape) / steps).flatten(1), tolerance, max_iterations)
        return (scaled.view(shape) * steps).flatten(1), converged

    def heads(self, solutions: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``(P, C, D)`` and biases ``(P, C)`` on the features as they came."""
        along_axes = solutions.view(-1, self.n_classes, self.dim)
        weight = along_axes[..., :-1] @ self.axes.T
        return weight, along_axes[..., -1] - weight @ self.mean
