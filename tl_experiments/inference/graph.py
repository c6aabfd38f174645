"""A model as one graph from uint8 images to logits, for programs without Python."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from tl_experiments.heads.knn import VOTE_FLOOR, KNNHead
from tl_experiments.training.model import TransferModel

INPUT, OUTPUT = "image", "logits"


class _Votes(nn.Module):
    """``KNNHead`` with its number of neighbours fixed, so that the graph's shapes do not depend on a tensor's value."""

    features: Tensor
    one_hot: Tensor

    def __init__(self, head: KNNHead) -> None:
        super().__init__()
        self.register_buffer("features", functional.normalize(head.features, dim=1))
        self.register_buffer("one_hot", functional.one_hot(head.labels, head.n_classes).to(head.features.dtype))
        self.neighbours = min(int(head.neighbours), len(head.labels))
        self.temperature = head.temperature

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(n, D)`` to logarithms of the shares of the votes, ``(n, n_classes)``."""
        cosine, index = (functional.normalize(features, dim=1) @ self.features.T).topk(self.neighbours, dim=1)
        votes = ((cosine - cosine[:, :1]) / self.temperature).exp()
        tally = (votes[:, :, None] * self.one_hot[index]).sum(1)
        return (tally / tally.sum(1, keepdim=True)).clamp(min=VOTE_FLOOR).log()


def trace(model: TransferModel) -> ExportedProgram:
    """The model by ``torch.export``: uint8 ``image`` ``(n, channels, size, size)`` to ``logits`` ``(n, n_classes)``.

    Mean and standard deviation are in the graph, and n is free.

    Args:
        model: On the CPU, in eval mode.
    """
    spec = model.backbone.input_spec
    example = torch.zeros(2, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8)
    if isinstance(model.head, KNNHead):
        model = TransferModel(model.backbone, _Votes(model.head), model.layout, model.memory_format).eval()
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes={INPUT: {0: Dim("batch")}}, strict=False)
