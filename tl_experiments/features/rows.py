"""Tensors as rows of bytes and back, to the bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Column:
    """One tensor that crosses the cut, as it stands in a row.

    Args:
        dtype: As it is kept.
        computed: As the prefix gives it and the tail takes it.
        shape: Of one image, in the order in which it lies in memory.
        channels_last: Whether the tensor is ``(n, channels, height, width)`` in channels_last memory; it is kept as
            ``(height, width, channels)``, so that reading it back moves nothing.
    """

    dtype: torch.dtype
    computed: torch.dtype
    shape: tuple[int, ...]
    channels_last: bool

    @property
    def bytes(self) -> int:
        """Of one image."""
        return math.prod(self.shape) * self.dtype.itemsize


def columns_of(activations: Sequence[Tensor], dtype: torch.dtype | None = None) -> tuple[Column, ...]:
    """How ``activations`` are kept; floating point as ``dtype``, where it is given."""
    return tuple(_column(tensor, dtype) for tensor in activations)


def _column(tensor: Tensor, dtype: torch.dtype | None) -> Column:
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    last = last and not tensor.is_contiguous()
    shape = tuple(tensor.permute(0, 2, 3, 1).shape[1:]) if last else tuple(tensor.shape[1:])
    kept = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return Column(kept, tensor.dtype, shape, last)


def row_bytes(columns: Sequence[Column]) -> int:
    """Bytes of one image."""
    return sum(column.bytes for column in columns)


def to_rows(activations: Sequence[Tensor], columns: Sequence[Column]) -> NDArray[np.uint8]:
    """``(n, ...)`` each to ``(n, row_bytes)``."""
    parts = []
    for tensor, column in zip(activations, columns, strict=True):
        ordered = tensor.detach().permute(0, 2, 3, 1) if column.channels_last else tensor.detach()
        flat = ordered.to(column.dtype).reshape(len(tensor), -1).contiguous().cpu()
        parts.append(flat.view(torch.uint8).numpy())
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def from_rows(rows: Tensor, columns: Sequence[Column]) -> tuple[Tensor, ...]:
    """uint8 ``(n, row_bytes)`` back to ``(n, ...)`` each, as they were computed, on the same device."""
    start, found = 0, []
    for column in columns:
        piece = rows[:, start : start + column.bytes]
        tensor = piece.contiguous().view(column.dtype).view(len(rows), *column.shape).to(column.computed)
        found.append(tensor.permute(0, 3, 1, 2) if column.channels_last else tensor)
        start += column.bytes
    return tuple(found)


def rounding(activations: Sequence[Tensor], columns: Sequence[Column]) -> float:
    """Largest difference that keeping makes, as a share of its tensor's largest number; not finite without room."""
    kept = from_rows(torch.from_numpy(to_rows(activations, columns)), columns)
    shares = [0.0]
    for tensor, found, column in zip(activations, kept, columns, strict=True):
        if column.dtype != column.computed:
            expected = tensor.detach().cpu().double()
            shares.append(((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item())
    return sum(shares) if not math.isfinite(sum(shares)) else max(shares)
