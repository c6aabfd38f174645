"""A classifier without parameters: the training images nearest to a new one vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

VOTE_FLOOR = 1e-6  # share of the votes that a class without any is given: its logarithm must be finite
_SIMILARITIES = 1 << 24  # held at once: 64 MiB in float32


class KNNHead(nn.Module):
    """Weighted votes of the nearest training images by cosine (Wu et al., 2018).

    It is empty, and prefers no class, until ``fill`` or a checkpoint gives it images.

    Args:
        feature_dim: D.
        n_classes: C.
        temperature: A neighbour's vote weighs ``exp(cosine / temperature)``; above 0.
    """

    features: Tensor
    labels: Tensor
    neighbours: Tensor

    def __init__(self, feature_dim: int, n_classes: int, temperature: float) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.temperature = temperature
        self.register_buffer("features", torch.empty(0, feature_dim))
        self.register_buffer("labels", torch.empty(0, dtype=torch.long))
        self.register_buffer("neighbours", torch.tensor(0))
        self.register_load_state_dict_pre_hook(_take_sizes)

    def fill(self, features: Tensor, labels: Tensor, neighbours: int) -> None:
        """Take training features ``(n, D)``, labels ``(n,)`` and the number of neighbours that vote."""
        self.features = functional.normalize(features.to(self.features), dim=1)
        self.labels = labels.to(self.labels)
        self.neighbours = torch.full_like(self.neighbours, neighbours)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(n, D)`` to logits ``(n, n_classes)``, the logarithms of the shares of the votes."""
        (logits,) = knn_logits(
            self.features, self.labels, features, self.n_classes, [int(self.neighbours)], self.temperature
        )
        return logits


@torch.no_grad()
def knn_logits(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    n_classes: int,
    neighbours: Sequence[int],
    temperature: float,
) -> Tensor:
    """Logarithms of the shares of the votes, for several numbers of neighbours from one search.

    Args:
        train_features: Of those that vote, ``(n, D)``, of any length: it does not count.
        train_labels: int64 ``(n,)``.
        features: ``(m, D)``, likewise.
        n_classes: C.
        neighbours: K numbers; where there are fewer images than that, all vote.
        temperature: A neighbour's vote weighs ``exp(cosine / temperature)``; above 0.

    Returns:
        ``(K, m, C)``; a class without votes counts as a millionth of them.
    """
    train = functional.normalize(train_features, dim=1)
    chunk = max(1, _SIMILARITIES // max(1, len(train)))
    parts = []
    for queries in functional.normalize(features, dim=1).split(chunk):
        cosine, index = (queries @ train.T).topk(min(max(neighbours), len(train)), dim=1)
        # Weighed against the nearest one: at a low temperature the exponential itself would overflow.
        votes = ((cosine - cosine[:, :1]) / temperature).exp()
        labels = train_labels[index]
        for k in neighbours:
            tally = votes.new_zeros(len(queries), n_classes).scatter_add_(1, labels[:, :k], votes[:, :k])
            parts.append(tally / tally.sum(1, keepdim=True).clamp(min=1))  # the nearest one's vote is 1
    shares = [torch.cat(parts[number :: len(neighbours)]) for number in range(len(neighbours))]
    return torch.stack(shares).clamp(min=VOTE_FLOOR).log()


def _take_sizes(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: object) -> None:
    """How many images there are is known from the file alone."""
    for name in ("features", "labels"):
        if f"{prefix}{name}" in state:
            buffer = getattr(module, name)
            setattr(module, name, buffer.new_empty(state[f"{prefix}{name}"].shape))
