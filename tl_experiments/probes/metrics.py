"""Metrics of many heads at once."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def metrics_of_each(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """``accuracy``, ``macro_f1`` (over the classes that the labels have), both in [0, 1], and ``nll`` in nats.

    Args:
        logits: Of K heads, ``(K, n, C)``. One that is not finite counts as a prediction of some class: look first.
        labels: int64 ``(n,)``.

    Returns:
        ``(K,)`` each; ``nll`` in float64.
    """
    n_heads, n, n_classes = logits.shape
    predicted = logits.argmax(2)
    head = torch.arange(n_heads, device=logits.device)[:, None]
    cells = (head * n_classes + labels) * n_classes + predicted
    confusion = torch.bincount(cells.view(-1), minlength=n_heads * n_classes**2).view(n_heads, n_classes, n_classes)
    hits = confusion.diagonal(dim1=1, dim2=2).float()
    of_class = confusion[0].sum(1)  # the labels are the same for all heads
    f1 = 2 * hits / (of_class + confusion.sum(1)).clamp(min=1)
    log_p = logits.double().log_softmax(2)
    return {
        "accuracy": hits.sum(1) / n,
        "macro_f1": f1[:, of_class > 0].mean(1),
        "nll": -log_p.gather(2, labels[None, :, None].expand(n_heads, -1, 1)).mean((1, 2)),
    }
