"""Which images make up which batch: pure functions of the counts, the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[Positions]:
    """The batches of one epoch: a permutation of all positions, cut into pieces.

    The last batch may be smaller. A single image is joined to the batch before, because BatchNorm cannot train on one;
    fewer images than ``batch_size`` make one batch.

    Args:
        n: Number of images, 1 or more.
        batch_size: Images a batch, 1 or more.
        seed: Of the order.
        epoch: Counted from 0; each has an order of its own.

    Returns:
        Positions in [0, n), each once.
    """
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return np.split(order, [batch_size * number for number in range(1, steps_per_epoch(n, batch_size))])


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Number of batches that ``epoch_batches`` makes."""
    full, rest = divmod(n, batch_size)
    return max(1, full + (rest > 0) - _joined(n, batch_size))


def batch_notes(n: int, batch_size: int) -> tuple[str, ...]:
    """What is unusual about the batches, in whole sentences."""
    if n < batch_size:
        return (f"Each epoch is one batch of {n}: there are fewer training images than batch_size {batch_size}.",)
    if _joined(n, batch_size):
        return (f"The last batch of an epoch holds {batch_size + 1} images: a single one left over was joined to it.",)
    return ()


def step_batches(n: int, batch_size: int, seed: int, first_step: int, end_step: int) -> Iterator[tuple[int, Positions]]:
    """The batches of the steps [first_step, end_step) of a run, each with its epoch.

    Step ``s`` belongs to epoch ``s // steps_per_epoch``, so a run that is cut at any steps sees the same batches.
    """
    steps = steps_per_epoch(n, batch_size)
    step = first_step
    while step < end_step:
        epoch, start = divmod(step, steps)
        for batch in epoch_batches(n, batch_size, seed, epoch)[start : start + end_step - step]:
            yield epoch, batch
            step += 1


def eval_batches(n: int, batch_size: int) -> list[Positions]:
    """All positions in their order, cut into pieces of ``batch_size``."""
    return np.split(np.arange(n), range(batch_size, n, batch_size))


def _joined(n: int, batch_size: int) -> bool:
    return n > batch_size and n % batch_size == 1
