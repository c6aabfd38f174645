"""Cross-entropy of many heads on the same batch, and its gradient by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CrossEntropy:
    """``torch.nn.functional.cross_entropy`` with its mean over the batch, for K heads with options of their own.

    Args:
        smoothing: Share of the target spread evenly over all classes, ``(K,)`` in [0, 1); None smooths nowhere.
        class_weight: ``(K, C)``, 0 or more; None weighs all classes equally.
    """

    smoothing: Tensor | None
    class_weight: Tensor | None

    def loss(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Mean losses ``(K,)`` in nats, from log-probabilities ``(K, C, B)`` and labels ``(B,)``."""
        target = log_p.gather(1, labels.expand(len(log_p), 1, -1)).squeeze(1)
        if self.class_weight is None:
            losses = -target.mean(1)
            if self.smoothing is not None:
                losses.lerp_(-log_p.mean((1, 2)), self.smoothing)
            return losses
        weight = self._sample_weight(labels)
        losses = -(target * weight).mean(1)
        if self.smoothing is not None:
            uniform = -(log_p * self._spread_weight(labels)).mean((1, 2))
            losses.lerp_(uniform, self.smoothing)
        return losses

    def gradient_(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Turn ``log_p`` into the gradient of the losses with respect to the logits, in place."""
        n_heads, n_classes, n = log_p.shape
        one_hot = torch.zeros(n_classes, n, dtype=log_p.dtype, device=log_p.device)
        one_hot.scatter_(0, labels[None], 1.0)
        p = log_p.exp_()
        if self.class_weight is None:
            if self.smoothing is None:
                return p.sub_(one_hot).div_(n)
            kept = (1 - self.smoothing).view(n_heads, 1, 1)
            p.addcmul_(one_hot, kept, value=-1).sub_((self.smoothing / n_classes).view(n_heads, 1, 1))
            return p.div_(n)
        pull = one_hot * self._sample_weight(labels)[:, None]  # what each logit is drawn to, its sum is the push
        if self.smoothing is not None:
            pull = pull.lerp(self._spread_weight(labels) / n_classes, self.smoothing.view(n_heads, 1, 1))
        return p.mul_(pull.sum(1, keepdim=True)).sub_(pull).div_(n)

    def _sample_weight(self, labels: Tensor) -> Tensor:
        """The weight of each image's class, ``(K, B)``, over the mean of the batch, as torch's mean has it."""
        assert self.class_weight is not None
        weight = self.class_weight[:, labels]
        return weight / weight.mean(1, keepdim=True)

    def _spread_weight(self, labels: Tensor) -> Tensor:
        """The weight of each class over the mean of the batch, ``(K, C, 1)``."""
        assert self.class_weight is not None
        return (self.class_weight / self.class_weight[:, labels].mean(1, keepdim=True))[:, :, None]
