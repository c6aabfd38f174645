"""When memory runs out: how it shows, and the batch in smaller parts."""

from __future__ import annotations

import gc

import torch

from tl_experiments.types import Batch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether device or CPU memory was out; torch says the latter by the name of its allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def release_memory() -> None:
    """Give back what a failed step still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """The batch in ``parts`` pieces whose sizes differ by at most one; in fewer where it has fewer images."""
    if parts == 1:
        return [batch]
    pieces = min(parts, len(batch["label"]))
    columns = {name: tensor.tensor_split(pieces) for name, tensor in batch.items()}  # type: ignore[attr-defined]
    return [{name: column[piece] for name, column in columns.items()} for piece in range(pieces)]  # type: ignore[misc]
