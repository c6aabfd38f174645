"""How a frozen prefix is put to work on many images."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from tl_experiments.errors import first_line

logger = logging.getLogger(__name__)

Prefix = Callable[[Tensor], tuple[Tensor, ...]]

# Every batch of an encoding has this many images, the last filled up with zeros: a row does then not depend on
# which other rows were missing, so that a killed run that goes on ends to the bit like one that was not.
_BATCH = {"cpu": 32, "cuda": 256}
_COMPILE_FROM = 20_000  # images: compiling takes a minute or so, in which a GPU encodes about as many


def encoding_batch(device: torch.device) -> int:
    """Images that are encoded at once, by the type of the device alone."""
    return _BATCH.get(device.type, _BATCH["cpu"])


def compiling_pays(device: torch.device, images: int) -> bool:
    """Whether a prefix is compiled to encode so many images; part of the key, since it rounds in its own way."""
    return device.type == "cuda" and images > _COMPILE_FROM


def compiled(prefix: Prefix, backend: str = "inductor") -> Prefix:
    """The prefix by ``torch.compile``, for batches of one size; as it is, after a line in the log, where that fails."""
    fast: Prefix | None = torch.compile(prefix, dynamic=False, backend=backend)

    def call(images: Tensor) -> tuple[Tensor, ...]:
        nonlocal fast
        if fast is not None:
            try:
                return fast(images)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a missing C compiler, an operation that it does not know
                fast = None
                logger.warning("the frozen part is encoded without torch.compile: %s", first_line(error))
        return prefix(images)

    return call
