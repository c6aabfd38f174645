"""Which images make up which batch: pure functions of the counts, the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Labels = NDArray[np.int64]


class Drawn(NamedTuple):
    """The images of one batch.

    Args:
        epoch: Counted from 0.
        positions: In the split, ``(n,)``.
        views: How often the epoch has shown each of them before, ``(n,)``.
    """

    epoch: int
    positions: Positions
    views: Positions


@dataclass(frozen=True)
class Share:
    """The part of each batch that one of several processes computes; by default all of it.

    Args:
        number: Of the process, from 0.
        of: Number of processes.
        least: Fewest images of a part; 2 where a BatchNorm trains, which cannot on one.
    """

    number: int = 0
    of: int = 1
    least: int = 1

    def part(self, n: int) -> slice:
        """Which of ``n`` images, one or more; sizes differ by at most one.

        Where there are too few for all processes the last ones take the first one's, and ``counts`` says no.
        """
        working = self._working(n)
        size, more = divmod(n, working)
        number = self.number if self.number < working else 0
        start = number * size + min(number, more)
        return slice(start, start + size + (number < more))

    def least_of(self, n: int) -> int:
        """Images of the smallest part of ``n``."""
        return n // self._working(n)

    def counts(self, n: int) -> bool:
        """Whether the part is this process's alone."""
        return self.number < self._working(n)

    def drawn(self, drawn: Drawn) -> Drawn:
        """The part of a batch."""
        part = self.part(len(drawn.positions))
        return Drawn(drawn.epoch, drawn.positions[part], drawn.views[part])

    def _working(self, n: int) -> int:
        return max(1, min(self.of, n // self.least))


WHOLE = Share()


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int, balanced: Labels | None = None) -> list[Positions]:
    """The batches of one epoch: a permutation of all positions, or as many of a balanced order, cut into pieces.

    The last batch may be smaller. A single image is joined to the batch before, because BatchNorm cannot train on one;
    fewer images than ``batch_size`` make one batch.

    Args:
        n: Number of images, 1 or more.
        batch_size: Images a batch, 1 or more.
        seed: Of the order.
        epoch: Counted from 0; each has an order of its own.
        balanced: Labels of the images, ``(n,)``, where classes are seen equally often; see ``balanced_order``.

    Returns:
        Positions in [0, n), each once where nothing is balanced.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(n) if balanced is None else balanced_order(balanced, rng)
    return np.split(order, [batch_size * number for number in range(1, steps_per_epoch(n, batch_size))])


def balanced_order(labels: Labels, rng: np.random.Generator) -> Positions:
    """As many positions as there are labels ``(n,)``, with repetitions, each class equally often.

    A weighted random sampler, which draws every image by itself with probability 1 / (n_classes * n_of_class), is right
    on average only: the classes' counts vary from epoch to epoch, and a class that is drawn as often as it has images
    misses a third of them. Here the counts of two classes differ by one at most, and so do those of two images of one
    class; which of them are drawn once more is random.
    """
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    each, left = divmod(len(labels), len(members))
    counts = each + (rng.permutation(len(members)) < left)
    drawn = [_evenly(positions, int(count), rng) for positions, count in zip(members, counts, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def _evenly(positions: Positions, count: int, rng: np.random.Generator) -> Positions:
    """``count`` of the positions, each as often as another or once more."""
    times, left = divmod(count, len(positions))
    return np.concatenate([np.repeat(positions, times), rng.permutation(positions)[:left]])


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Number of batches that ``epoch_batches`` makes."""
    full, rest = divmod(n, batch_size)
    return max(1, full + (rest > 0) - _joined(n, batch_size))


def fewest_images(n: int, batch_size: int) -> int:
    """Of the batches that ``epoch_batches`` makes, those of the smallest."""
    rest = 0 if _joined(n, batch_size) else n % batch_size
    return rest or min(n, batch_size)


def batch_notes(n: int, batch_size: int) -> tuple[str, ...]:
    """What is unusual about the batches, in whole sentences."""
    if n < batch_size:
        return (f"Each epoch is one batch of {n}: there are fewer training images than batch_size {batch_size}.",)
    if _joined(n, batch_size):
        return (f"The last batch of an epoch holds {batch_size + 1} images: a single one left over was joined to it.",)
    return ()


def step_batches(
    n: int, batch_size: int, seed: int, first_step: int, end_step: int, balanced: Labels | None = None
) -> Iterator[Drawn]:
    """The batches of the steps [first_step, end_step) of a run.

    Step ``s`` belongs to epoch ``s // steps_per_epoch``, so a run that is cut at any steps sees the same batches.
    """
    steps = steps_per_epoch(n, batch_size)
    step = first_step
    while step < end_step:
        epoch, start = divmod(step, steps)
        batches = epoch_batches(n, batch_size, seed, epoch, balanced)
        views = np.split(_repetitions(np.concatenate(batches)), np.cumsum([len(batch) for batch in batches])[:-1])
        for positions, shown in list(zip(batches, views, strict=True))[start : start + end_step - step]:
            yield Drawn(epoch, positions, shown)
            step += 1


def eval_batches(n: int, batch_size: int) -> list[Drawn]:
    """All positions in their order, cut into pieces of ``batch_size``."""
    return [
        Drawn(0, positions, np.zeros_like(positions))
        for positions in np.split(np.arange(n), range(batch_size, n, batch_size))
    ]


def _repetitions(order: Positions) -> Positions:
    """How often each entry stands before itself."""
    places = np.argsort(order, kind="stable")
    starts = np.flatnonzero(np.diff(order[places], prepend=-1))
    found = np.empty_like(order)
    found[places] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return found


def _joined(n: int, batch_size: int) -> bool:
    return n > batch_size and n % batch_size == 1
