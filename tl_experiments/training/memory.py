"""When memory runs out: how it shows, the batch in smaller parts, and what a step done again must not count twice."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tl_experiments.types import Batch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether device or CPU memory was out; torch says the latter by the name of its allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def is_out_of_device_memory(error: BaseException) -> bool:
    """Whether it was a GPU's memory."""
    return isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available()


def release_memory() -> None:
    """Give back what a failed step still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def split_batch(batch: Batch, parts: int, smallest: int) -> list[Batch]:
    """The batch in ``parts`` pieces whose sizes differ by at most one; in fewer where they would get too small.

    Args:
        batch: Tensors of one length.
        parts: 1 or more.
        smallest: Least images of a piece; 2 where a BatchNorm trains, which cannot on one.
    """
    pieces = max(1, min(parts, len(batch["label"]) // smallest))
    if pieces == 1:
        return [batch]
    columns = {name: _cut(value, pieces) for name, value in batch.items()}
    return [{name: column[piece] for name, column in columns.items()} for piece in range(pieces)]  # type: ignore[misc]


def _cut(value: Any, pieces: int) -> Sequence[Any]:
    """A tensor, or each of several, in pieces."""
    if isinstance(value, tuple):
        return list(zip(*(_cut(tensor, pieces) for tensor in value), strict=True))
    return cast(Tensor, value).tensor_split(pieces)


def forward_in_parts(forward: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """``forward`` of a batch that is only evaluated; where memory does not hold it, of its halves."""
    try:
        return forward(batch)
    except RuntimeError as error:
        if len(batch["label"]) == 1 or not is_out_of_memory(error):
            raise
    release_memory()
    return torch.cat([forward_in_parts(forward, half) for half in split_batch(batch, 2, smallest=1)])


class Statistics:
    """Running statistics put back to what they were: a forward pass that is done twice must count once.

    Args:
        model: Whose buffers they are.
        names: Of the buffers that training updates.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        buffers = dict(model.named_buffers())
        self._live = [buffers[name] for name in sorted(names)]
        self._kept = [buffer.detach().clone() for buffer in self._live]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the values of now."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    @torch.no_grad()
    def put_back(self) -> None:
        """The values remembered."""
        if self._live:
            torch._foreach_copy_(self._live, self._kept)
