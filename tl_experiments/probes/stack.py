"""Many linear heads trained in one computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tl_experiments.probes.cross_entropy import CrossEntropy
from tl_experiments.probes.updates import SGD, AdamW, AdamWUpdate, Heads, SGDUpdate


class ProbeStack:
    """K linear heads that see the same batches, each with options of its own; equal to K heads trained by torch.

    A step is one matrix product each way for all heads. A head that is no longer finite touches no other. Nothing here
    waits for a device.

    Args:
        weight: Where the heads start, ``(K, C, D)``; copied. Its dtype and device are the stack's.
        bias: Likewise, ``(K, C)``.
        optimizer: Of all heads.
        weight_decay: Of each head's weight, K numbers of 0 or more; biases are not decayed.
        label_smoothing: Of each head, K numbers in [0, 1).
        clip_norm: The norm that each head's gradient, weight and bias together, is clipped to; K numbers above 0, or
            None where it is not clipped.
        class_weight: ``(K, C)``, 0 or more; None weighs all classes equally.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        optimizer: AdamW | SGD,
        *,
        weight_decay: Sequence[float],
        label_smoothing: Sequence[float],
        clip_norm: Sequence[float | None],
        class_weight: Tensor | None = None,
    ) -> None:
        options = (weight_decay, label_smoothing, clip_norm)
        assert weight.shape[:2] == bias.shape
        assert all(len(each) == len(weight) for each in options)
        self._heads = Heads(weight, bias)
        self._gradient = self._heads.like()
        self._update = (
            AdamWUpdate(optimizer, self._heads) if isinstance(optimizer, AdamW) else SGDUpdate(optimizer, self._heads)
        )
        self._weight_decay = self._option(weight_decay)
        self._loss = CrossEntropy(self._option(label_smoothing), class_weight)
        clipped = any(norm is not None for norm in clip_norm)
        self._clip_norm = (
            weight.new_tensor([torch.inf if norm is None else norm for norm in clip_norm]) if clipped else None
        )
        self._buffers: tuple[Tensor, Tensor] = (weight.new_empty(0), weight.new_empty(0))

    @property
    def weight(self) -> Tensor:
        """``(K, C, D)``, as it is now; the next step changes it in place."""
        return self._heads.weight

    @property
    def bias(self) -> Tensor:
        """``(K, C)``, likewise."""
        return self._heads.bias

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor, lr: Tensor) -> Tensor:
        """One step of every head on the mean loss of a batch.

        Args:
            features: ``(B, D)``.
            labels: int64 ``(B,)``.
            lr: Learning rate of each head, ``(K,)``.

        Returns:
            The losses before the step, ``(K,)`` in nats.
        """
        n_heads, n_classes, dim = self.weight.shape
        # Classes before images: the softmax then runs along whole rows of images instead of ten numbers at a time.
        logits, log_p = (buffer.view(n_heads, n_classes, -1) for buffer in self._workspace(len(features)))
        weight = self.weight.view(-1, dim)
        torch.addmm(self.bias.view(-1, 1), weight, features.T, out=logits.view(len(weight), -1))
        torch.log_softmax(logits, 1, out=log_p)
        losses = self._loss.loss(log_p, labels)
        slope = self._loss.gradient_(log_p, labels)
        torch.mm(slope.view(len(weight), -1), features, out=self._gradient.weight.view(-1, dim))
        torch.sum(slope, 2, out=self._gradient.bias)
        self._clip()
        self._update.apply(self._heads, self._gradient, lr, self._weight_decay)
        return losses

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Features ``(n, D)`` to logits ``(K, n, C)``."""
        return logits(self.weight, self.bias, features)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of everything that the next step depends on."""
        state = {"heads": self._heads.flat, **self._update.state()}
        return {name: tensor.clone() for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where ``state`` was taken, bit for bit; the stack's shapes and options are those it was made with."""
        rest = dict(state)
        self._heads.flat.copy_(rest.pop("heads"))
        self._update.load(rest)

    def _option(self, values: Sequence[float]) -> Tensor | None:
        """``(K,)``; None where it acts on no head."""
        return self._heads.flat.new_tensor(values) if any(values) else None

    def _workspace(self, batch_size: int) -> tuple[Tensor, Tensor]:
        size = self.bias.numel() * batch_size
        if len(self._buffers[0]) < size:
            self._buffers = (self.bias.new_empty(size), self.bias.new_empty(size))
        return self._buffers[0][:size], self._buffers[1][:size]

    def _clip(self) -> None:
        """Each head's gradient by its norm, as ``torch.nn.utils.clip_grad_norm_`` does."""
        if self._clip_norm is None:
            return
        weight, bias = self._gradient.weight, self._gradient.bias
        norm = torch.hypot(torch.linalg.vector_norm(weight, dim=(1, 2)), torch.linalg.vector_norm(bias, dim=1))
        factor = (self._clip_norm / (norm + 1e-6)).clamp_(max=1.0)
        weight.mul_(factor.view(-1, 1, 1))
        bias.mul_(factor.view(-1, 1))


def logits(weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    """Of heads ``(K, C, D)`` and ``(K, C)`` on features ``(n, D)``, as ``(K, n, C)``."""
    n_heads, n_classes, dim = weight.shape
    flat = torch.addmm(bias.reshape(-1), features, weight.reshape(-1, dim).T)
    return flat.view(-1, n_heads, n_classes).transpose(0, 1)
