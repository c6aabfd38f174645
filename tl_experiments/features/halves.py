"""The two halves of a cut model as things to call, and the tensors that go from one to the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tl_experiments.features.record import Recording, ReplayError, Value
from tl_experiments.features.replay import Replay


@dataclass(frozen=True)
class Edge:
    """A tensor that crosses the cut, ``rows`` for each image along its first dimension."""

    value: Value
    rows: int
    channels_last: bool

    def rows_of(self, tensor: Tensor) -> Tensor:
        """As one entry an image, contiguous and with a storage of its own."""
        if self.rows > 1:
            tensor = tensor.unflatten(0, (-1, self.rows))
        tensor = tensor.detach().contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone()

    def tensor_of(self, entries: Tensor) -> Tensor:
        """The way back."""
        tensor = entries.flatten(0, 1) if self.rows > 1 else entries
        return tensor.contiguous(memory_format=torch.channels_last) if self.channels_last else tensor


class Prefix:
    """The frozen part; see ``Split.prefix``."""

    def __init__(self, replay: Replay, edges: Sequence[Edge]) -> None:
        self._replay, self.edges = replay, edges

    @torch.no_grad()
    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        tensors = self._replay([image], len(image))
        return tuple(edge.rows_of(tensor) for edge, tensor in zip(self.edges, tensors, strict=True))


class Tail(nn.Module):
    """The trained part; ``changes`` says which activations its code would overwrite."""

    def __init__(self, model: nn.Module, replays: Mapping[bool, Replay], edges: Sequence[Edge]) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)
        self._replays, self._edges = replays, edges
        self.changes = [False] * len(edges)

    def forward(self, *activations: Tensor) -> Tensor:
        tensors = [
            edge.tensor_of(activation.clone() if changes else activation)
            for edge, activation, changes in zip(self._edges, activations, self.changes, strict=True)
        ]
        (logits,) = self._replays[self.model.training](tensors, len(activations[0]))
        return logits


def edges_of(values: Sequence[Value], few: Recording, more: Recording) -> list[Edge]:
    """The edges that ``values`` are, by their shapes for two numbers of images.

    Raises:
        ReplayError: One of them does not consist of rows, as many for each image.
    """
    edges = []
    for value in values:
        shape, other = few.tensors[value].shape, more.tensors[value].shape
        rows, rest = divmod(shape[0] if shape else 1, len(few.result))
        if rest or not rows or other != (rows * len(more.result), *shape[1:]):
            step = few.steps[value.step].name
            raise ReplayError(f"what {step} gives has no row for each image, its shape is {tuple(shape)}")
        last = more.tensors[value].ndim == 4 and not more.tensors[value].is_contiguous()
        last = last and more.tensors[value].is_contiguous(memory_format=torch.channels_last)
        edges.append(Edge(value, rows, last))
    return edges
