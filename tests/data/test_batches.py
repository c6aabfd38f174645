"""Batches as a pure function of counts, seed and step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tl_experiments.data.batches import (
    Share,
    batch_notes,
    epoch_batches,
    eval_batches,
    step_batches,
    steps_per_epoch,
)


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (8, 4, [4, 4]),
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),
        (5, 4, [5]),
        (3, 4, [3]),
        (1, 4, [1]),
        (4, 4, [4]),
        (3, 1, [1, 1, 1]),
        (3, 2, [3]),
    ],
)
def test_epochs_hold_each_image_once_and_no_single_one_left_over(n: int, batch_size: int, sizes: list[int]) -> None:
    batches = epoch_batches(n, batch_size, seed=0, epoch=0)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert steps_per_epoch(n, batch_size) == len(sizes)


def test_order_depends_on_seed_and_epoch_only() -> None:
    orders = [np.concatenate(epoch_batches(50, 8, *key)).tolist() for key in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    assert np.concatenate(epoch_batches(50, 5, 0, 0)).tolist() == orders[0]


@pytest.mark.parametrize("cuts", [(0, 9), (0, 1, 9), (0, 3, 6, 9), (0, 2, 2, 7, 9)])
def test_a_run_cut_at_any_steps_sees_the_same_batches(cuts: tuple[int, ...]) -> None:
    whole = [(epoch, batch.tolist()) for epoch in range(3) for batch in epoch_batches(10, 4, 5, epoch)]
    pieces = [
        (drawn.epoch, drawn.positions.tolist())
        for first, end in pairwise(cuts)
        for drawn in step_batches(10, 4, 5, first, end)
    ]
    assert pieces == whole


@pytest.mark.parametrize(
    ("n", "batch_size", "note"),
    [
        (3, 4, "Each epoch is one batch of 3: there are fewer training images than batch_size 4."),
        (9, 4, "The last batch of an epoch holds 5 images: a single one left over was joined to it."),
        (8, 4, None),
        (10, 4, None),
        (3, 1, None),
    ],
)
def test_unusual_batches_are_noted(n: int, batch_size: int, note: str | None) -> None:
    assert batch_notes(n, batch_size) == ((note,) if note else ())


@pytest.mark.parametrize(("n", "sizes"), [(8, [4, 4]), (9, [4, 4, 1]), (3, [3])])
def test_eval_batches_keep_the_order_and_every_image(n: int, sizes: list[int]) -> None:
    batches = eval_batches(n, 4)
    assert [len(drawn.positions) for drawn in batches] == sizes
    assert np.concatenate([drawn.positions for drawn in batches]).tolist() == list(range(n))


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 21, 33])
@pytest.mark.parametrize("least", [1, 2])
def test_parts_are_those_of_array_split(n: int, processes: int, least: int) -> None:
    """Where each would get fewer than ``least`` images some compute nothing that counts."""
    shares = [Share(number, processes, least) for number in range(processes)]
    batch = np.arange(n)
    working = [share for share in shares if share.counts(n)]
    expected = np.array_split(batch, len(working))
    assert [batch[share.part(n)].tolist() for share in working] == [part.tolist() for part in expected]
    assert len(working) == min(processes, max(1, n // least))
    assert all(len(batch[share.part(n)]) >= min(n, least) for share in shares)  # the others have something to compute


def test_a_process_alone_gets_whole_batches() -> None:
    (drawn,) = eval_batches(5, 8)
    part = Share().drawn(drawn)
    assert part.positions.tolist() == drawn.positions.tolist()
