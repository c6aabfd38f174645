"""Two arms on the same test images: what differs beyond the images that happened to be in the test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl_experiments.analysis.bootstrap import percentile_of_mean
from tl_experiments.analysis.findings import ImageTests


@dataclass(frozen=True)
class Hits:
    """Which test images one run classified right.

    Args:
        images: Numbers of the images, the same image the same number in all runs of a comparison, int64 ``(n,)``.
        right: Whether the prediction was right, bool ``(n,)``.
    """

    images: NDArray[np.int64]
    right: NDArray[np.bool_]


def mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    """Two-sided exact p and mid-p of McNemar's test (1947; mid-p: Fagerland et al., 2013).

    Args:
        only_first: Images that only the first run had right.
        only_second: Images that only the second run had right.

    Returns:
        Exact, mid-p; both 1 where no image tells the runs apart.
    """
    from scipy.special import bdtr

    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0, 1.0
    up_to = float(bdtr(fewer, n, 0.5))
    just = up_to - (float(bdtr(fewer - 1, n, 0.5)) if fewer else 0.0)
    return min(1.0, 2 * up_to), min(1.0, 2 * up_to - just)


def compare_images(pairs: Sequence[tuple[Hits, Hits]]) -> ImageTests | None:
    """Test two arms over their shared images; null where they share none.

    Args:
        pairs: Runs of the first and of the second arm that share seed and split.
    """
    images, gains, exact, mid = [], [], [], []
    for first, second in pairs:
        shared, one, two = _aligned(first, second)
        if len(shared) == 0:
            continue
        gain = one.astype(np.int64) - two
        images.append(shared)
        gains.append(gain)
        both = mcnemar(int((gain > 0).sum()), int((gain < 0).sum()))
        exact.append(both[0])
        mid.append(both[1])
    if not images:
        return None
    gain = np.concatenate(gains)
    # An image keeps all its runs when it is drawn: the runs of one image are not independent.
    distinct, place, seen = np.unique(np.concatenate(images), return_inverse=True, return_counts=True)
    low, high = percentile_of_mean(np.bincount(place, gain) / seen)
    return ImageTests(
        images=len(distinct),
        only_first=int((gain > 0).sum()),
        only_second=int((gain < 0).sum()),
        mcnemar_p=tuple(mid),
        mcnemar_combined=min(1.0, 2 * float(np.mean(mid))) if len(mid) > 1 else mid[0],
        mcnemar_exact_combined=min(1.0, 2 * float(np.mean(exact))) if len(exact) > 1 else exact[0],
        low=low,
        high=high,
    )


def _aligned(first: Hits, second: Hits) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    if np.array_equal(first.images, second.images):
        return first.images, first.right, second.right
    shared, one, two = np.intersect1d(first.images, second.images, return_indices=True)
    return shared, first.right[one], second.right[two]
